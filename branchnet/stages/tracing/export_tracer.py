"""Trace a network's forward pass with torch.export, for networks whose code torch.fx cannot trace.

The graph has operators instead of modules; parameters and buffers keep their names. What the code decided from values
other than sizes is fixed as the example decided it, and so is the mode.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.overrides import TorchFunctionMode

from branchnet.errors import SplitError
from branchnet.stages.graph.dataflow import attribute
from branchnet.stages.interface import Example, call_arguments, flat_example
from branchnet.stages.tracing.allowed_sizes import allowed_sizes
from branchnet.stages.tracing.constants import constant_name
from branchnet.stages.tracing.fx_tracer import PREPROCESSING, Trace, transformed, where
from branchnet.stages.tracing.state_proxies import assignments_recorded
from branchnet.stages.tracing.trial import trial
from branchnet.utils.installed_torch.torch_internals import (
    Mod,
    PythonMod,
    assert_async_operator,
    assert_metadata_operator,
    assert_scalar_operator,
)

_CHECKS = frozenset(
    {
        assert_metadata_operator,
        assert_scalar_operator,
        assert_async_operator,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)


def trace_export(network: nn.Module, example: Example, *, dynamic: str) -> Trace:
    """Trace the network in the mode that it is in.

    Args:
        network: a borrowed structure.
        example: what it takes; with a batch of at least two where the batch is to stay free.
        dynamic: `"sizes"` keeps batch and lengths free, `"batch"` the batch alone, `"none"` neither.

    Returns:
        A trace whose graph has operators of ATen; parameters and buffers keep their names.

    Raises:
        SplitError: torch.export cannot trace it; the cause is chained.
    """
    inner = transformed(network, example)
    args, kwargs = call_arguments(inner)
    shapes = _dynamic_shapes(inner, dynamic)
    try:
        with trial(network) as copy, _without_dumps(), _SimpleSizes(), assignments_recorded():
            # Not strict: Python runs the code itself. Strict mode traces bytecode with Dynamo and refuses far more.
            program = torch.export.export(copy, args, kwargs, dynamic_shapes=shapes, strict=False)
        # Its own checks would refuse a batch of one, which torch.export never looks at.
        module = program.module(check_guards=False)
        sizes = allowed_sizes(program, flat_example(inner), PREPROCESSING in network._modules)
    except Exception as error:
        raise SplitError(f"torch.export cannot trace {type(network).__name__}: {where(error)}") from error
    graph = _plain_graph(module, network)
    if PREPROCESSING in network._modules:
        _start_with_preprocessing(graph)
    return Trace(network, graph, "export", sizes=sizes)


# A stride or a padding adds two or three operations to a size, and sizes are nested layer by layer.
_MOST_OPERATIONS = 24


class _SimpleSizes(TorchFunctionMode):
    """Ends an export whose free sizes become so involved (windows, padding to a multiple) that it would take minutes.

    What it decides by does not depend on the machine's speed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and look at the sizes of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                shape: Sequence[Any] = tensor.shape
                sizes = [size.node.expr for size in shape if isinstance(size, torch.SymInt)]
                if any(size.has(Mod, PythonMod) for size in sizes) or _operations(sizes) > _MOST_OPERATIONS:
                    raise SplitError(f"its sizes depend on the input's in too involved a way: {tuple(tensor.shape)}")
        return result


def _operations(sizes: Sequence[Any]) -> int:
    return sum(int(size.count_ops()) for size in sizes)


@contextmanager
def _without_dumps() -> Iterator[None]:
    """Hold back the graphs that torch prints when it fails; what else was printed is written out on success."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before, printed = logger.disabled, io.StringIO()
    logger.disabled = True
    try:
        with redirect_stderr(printed):
            yield
    finally:
        logger.disabled = before
    sys.stderr.write(printed.getvalue())


def _dynamic_shapes(example: Example, dynamic: str) -> Any:
    tensors = flat_example(example)
    batch = tensors[0].shape[0] if tensors[0].dim() else None
    shapes = [_dynamic_shape(tensor, batch, dynamic) for tensor in tensors]
    if isinstance(example, Mapping):
        return dict(zip(example, shapes, strict=True))
    return tuple(shapes)


def _dynamic_shape(tensor: Tensor, batch: int | None, dynamic: str) -> dict[int, Any] | None:
    # The order of dimensions decides what may be free: floats are (batch, channels, sizes...) and the weights fix the
    # channels; integers are (batch, length...).
    free = {0: Dim.AUTO} if tensor.dim() and tensor.shape[0] == batch and dynamic != "none" else {}
    if dynamic == "sizes":
        first = 2 if tensor.is_floating_point() else 1
        free |= dict.fromkeys(range(first, tensor.dim()), Dim.AUTO)
    return free or None


def _plain_graph(module: fx.GraphModule, root: nn.Module) -> fx.Graph:
    """The exported graph without its checks, with values that the root does not have put there."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    # torch.export puts look-ups of constants before the placeholders; fx wants placeholders first. The sort is stable.
    nodes = sorted(module.graph.nodes, key=lambda node: node.op != "placeholder")
    for node in nodes:
        if node.target in _CHECKS or (node.op == "call_module" and node.target == "_guards_fn"):
            continue
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], values.__getitem__))
            continue
        values[node] = graph.node_copy(node, values.__getitem__)
        if node.op == "get_attr":
            values[node].target = _provided(root, module, str(node.target))
        values[node].meta = {"nn_module_stack": node.meta.get("nn_module_stack")}
    _update_at_once(graph)
    graph.lint()
    return graph


def _provided(root: nn.Module, module: fx.GraphModule, path: str) -> str:
    """The path of a tensor below the root, which gets the constants that exporting made."""
    with suppress(AttributeError):
        root_value = attribute(root, path)
        if isinstance(root_value, Tensor):
            return path
    value = attribute(module, path)
    name = constant_name(value) if isinstance(value, Tensor) else path.replace(".", "_")
    if not hasattr(root, name):
        setattr(root, name, value.detach().clone() if isinstance(value, Tensor) else value)
    return name


def _update_at_once(graph: fx.Graph) -> None:
    """Move what exporting puts at the end, the writes to buffers, behind the new value and the last use of the old."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "get_attr" and not node.users:
            order = {each: k for k, each in enumerate(graph.nodes)}
            before = [node.args[1], *(user for user in node.args[0].users if user is not node)]
            max((each for each in before if order[each] < order[node]), key=lambda each: order[each]).append(node)


def _start_with_preprocessing(graph: fx.Graph) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        first = graph.call_module(PREPROCESSING, (inputs[0],))
    inputs[0].replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
