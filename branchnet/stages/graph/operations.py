"""What a node does, whichever way it is written.

Equal operations are an activation or adaptive pooling as a module, a function or a method, in place or not; a sum in
either order; pooling of images to one position and the mean over their positions, which torch computes alike; and
layers that return their argument in evaluation mode, whatever they drop in training. torch.fx itself says what a
module without tensors of its own does: one whose forward is one call is that call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.propagation import TensorForm
from branchnet.stages.graph.settings import has_hooks, is_dropping, module_signature, norm_signature, qualified_name
from branchnet.stages.tracing.fx_tracer import PREPROCESSING
from branchnet.stages.tracing.opened_norms import OpenedBatchNorm2d
from branchnet.stages.tracing.trial import borrow
from branchnet.utils.installed_torch.torch_internals import OpOverload

PASSING = ("passing",)
"""Signature of what returns its argument, at least in evaluation mode."""

# The settings of each function in the order in which torch.nn.functional takes them, with their defaults; torch's own
# functions, methods and operators take the same ones first. `inplace` decides where a result lies, not what it is.
_ACTIVATIONS: Mapping[str, Mapping[str, Any]] = {
    **{name: {} for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "mish", "selu", "hardswish", "hardsigmoid")},
    **{name: {} for name in ("softsign", "tanhshrink", "logsigmoid")},
    "gelu": {"approximate": "none"},
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "softmax": {"dim": None},
    "log_softmax": {"dim": None},
    "flatten": {"start_dim": 0, "end_dim": -1},
}
_POOLS = {"adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3}
"""Functions of an output size, with the number of its entries."""
_NO_SETTINGS = frozenset({"inplace", "_stacklevel"})
_COMMUTATIVE = {"add": "add", "iadd": "add", "mul": "mul", "imul": "mul"}
_DROPPING = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
_OF_TORCH = ("torch", "_operator")


@dataclass(frozen=True)
class Operation:
    """What a node does.

    Attributes:
        signature: something hashable, equal for equal operations.
        arguments: what it does it to: other nodes, and constants that the signature does not hold.
        commutative: whether two arguments may be exchanged.
    """

    signature: Any
    arguments: Any
    commutative: bool = False


def operation(flow: Dataflow, node: fx.Node) -> Operation:
    """What a node does, in the same words for all ways of writing it."""
    everything = (node.args, node.kwargs)
    if node.op == "placeholder":
        return Operation(("input", flow.inputs.index(node)), everything)
    if node.target == PREPROCESSING:
        return Operation(("transform",), everything)
    if passes(flow, node):
        return Operation(PASSING, node.args[0])
    if (keeps := position_mean(flow, node)) is not None:
        return Operation(("function", "mean of positions", keeps), node.args[0])
    if node.op == "call_module":
        return _of_module(flow.trace.root.get_submodule(str(node.target)), node)
    name = _torch_name(node)
    if settings := _settings(name, node.args[1:], node.kwargs):
        return Operation(("function", *settings), node.args[0])
    of_tensors = isinstance(flow.facts[node].form, TensorForm)  # the sum of two sizes is a longer one
    if of_tensors and name in _COMMUTATIVE and len(node.args) == 2 and not node.kwargs:
        return Operation(("function", _COMMUTATIVE[name]), node.args, commutative=True)
    target = node.target if isinstance(node.target, str) else qualified_name(node.target)
    return Operation((node.op, target), everything)


def passes(flow: Dataflow, node: fx.Node) -> bool:
    """Whether a node returns its argument in evaluation mode: an identity, or a layer that drops in training."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source in flow.free or node.target in ("output", PREPROCESSING):
        return False
    form = flow.facts[node].form
    if not isinstance(form, TensorForm) or form.dtype == torch.bool or form != flow.facts[source].form:
        return False
    if node.op == "call_module":
        module = flow.trace.root.get_submodule(str(node.target))
        plain = len(node.args) == 1 and not node.kwargs and not has_hooks(module)
        return plain and (type(module) is nn.Identity or is_dropping(type(module)))
    return node.target is torch.positive or _torch_name(node) in _DROPPING


def position_mean(flow: Dataflow, node: fx.Node) -> bool | None:
    """Whether a node takes the mean over the positions of images: True where it keeps their dimensions, with length 1.

    None where it does something else. torch computes average pooling of (B, C, H, W) to size 1 as the mean over
    dimensions 2 and 3, so both are bitwise equal.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source in flow.free:
        return None
    form = flow.facts[source].form
    if not isinstance(form, TensorForm) or len(form.shape) != 4:
        return None
    call: fx.Node | None = node
    if node.op == "call_module":
        plain = len(node.args) == 1 and not node.kwargs
        call = _only_call(flow.trace.root.get_submodule(str(node.target))) if plain else None
    if call is None:
        return None
    name = _torch_name(call)
    if name == "adaptive_avg_pool2d":
        return True if _settings(name, call.args[1:], call.kwargs) == (name, 1, 1) else None
    return _keeps_dimensions(call.args[1:], call.kwargs) if name == "mean" else None


def _keeps_dimensions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | None:
    """Whether a mean over dimensions 2 and 3 of four keeps them; None for other means."""
    given = {**dict(zip(("dim", "keepdim"), args, strict=False)), **kwargs}
    dims, keeps = given.pop("dim", None), given.pop("keepdim", False)
    known = isinstance(dims, tuple | list) and all(type(number) is int for number in dims)
    if len(args) > 2 or not known or {number % 4 for number in dims} != {2, 3} or len(dims) != 2:
        return None
    return keeps if isinstance(keeps, bool) and all(value is None for value in given.values()) else None


def _of_module(module: nn.Module, node: fx.Node) -> Operation:
    if isinstance(module, OpenedBatchNorm2d) and node.kwargs:
        return Operation(("module", norm_signature(module)), (node.args, {}))
    if len(node.args) == 1 and not node.kwargs and (call := _only_call(module)) is not None:
        name = _torch_name(call)
        if settings := _settings(name, call.args[1:], call.kwargs):
            return Operation(("function", *settings), node.args[0])
    return Operation(("module", module_signature(module)), (node.args, node.kwargs))


def _only_call(module: nn.Module) -> fx.Node | None:
    """The one function of its argument that a module without tensors, children and hooks calls."""
    if has_hooks(module) or next(module.children(), None) or [*module.parameters(), *module.buffers()]:
        return None
    try:
        graph = fx.Tracer().trace(borrow(module))
    except Exception:
        return None
    nodes = list(graph.nodes)
    if len(nodes) != 3 or nodes[1].all_input_nodes != [nodes[0]] or nodes[1].args[:1] != (nodes[0],):
        return None
    return nodes[1] if nodes[2].args == (nodes[1],) else None


def _torch_name(node: fx.Node) -> str:
    """The name of a function, method or operator of torch, without the mark of its in-place form; else nothing."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, OpOverload):
        name = target.overloadpacket.__name__ if target.namespace == "aten" else ""
    elif (getattr(target, "__module__", None) or "torch").partition(".")[0] in _OF_TORCH:
        name = getattr(target, "__name__", "")
    else:
        name = ""
    return name.removesuffix("_")


def _settings(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The values of an activation's settings after its own name; None for other functions and unknown arguments."""
    if name in _POOLS:
        return _pool_settings(name, args, kwargs)
    known = _ACTIVATIONS.get(name)
    if known is None:
        return None
    names = (*known, "inplace")
    given = {**dict(zip(names, args, strict=False)), **{k: v for k, v in kwargs.items() if k in known or v is not None}}
    if len(args) > len(names) or not set(given) <= {*known, *_NO_SETTINGS}:
        return None
    if not isinstance(given.get("inplace", False), bool):  # the type of the result, or another factor
        return None
    values = tuple(given.get(key, default) for key, default in known.items())
    if any(isinstance(value, fx.Node) for value in values):
        return None
    if name == "relu6":
        return ("hardtanh", 0.0, 6.0)
    return (name, *(float(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in values))


def _pool_settings(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The name of an adaptive pooling and its output size; None where that is not constant."""
    values = [*args, *kwargs.values()]
    if len(values) != 1 or not set(kwargs) <= {"output_size"}:
        return None
    (size,) = values
    sizes = (size,) * _POOLS[name] if isinstance(size, int) else size
    known = isinstance(sizes, tuple | list) and all(value is None or type(value) is int for value in sizes)
    return (name, *sizes) if known and len(sizes) == _POOLS[name] else None
