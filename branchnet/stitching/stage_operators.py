"""The one operator of a stage that reads a tensor of the cut before it, or that makes one of the cut after it.

Between the operator and the cut there may be what an affine map of channels goes through unchanged: identities, dropout
in evaluation mode, average pooling without padding, and for readers flattening.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from branchnet.stages import Stage
from branchnet.utils.installed_torch.torch_internals import ConvBase, DropoutBase, tree_leaves

Layer: TypeAlias = nn.Linear | ConvBase
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_ATEN = torch.ops.aten
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOL_FUNCTIONS = (
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default, _ATEN.adaptive_avg_pool3d.default),
)


@dataclass(frozen=True)
class Operator:
    """A layer of a stage that is called once.

    Attributes:
        path: its name in the stage.
        module: the layer.
        plain: whether its class is torch's own; another one, as for padding like TensorFlow's, may compute otherwise.
        pooled: whether what it reads was pooled before.
        flattened: whether all dimensions but the first were made one before.
    """

    path: str
    module: Layer
    plain: bool
    pooled: bool = False
    flattened: bool = False


def sole_reader(stage: nn.Module, argument: int, dims: int) -> Operator | None:
    """Find the convolution or linear layer that alone reads an input of a stage.

    Args:
        stage: a stage or head.
        argument: the number of the input.
        dims: how many dimensions it has.

    Returns:
        the operator; None where other code, or several operators, read it.
    """
    if not isinstance(stage, Stage):
        return None
    node = [node for node in stage.graph.nodes if node.op == "placeholder"][argument]
    pooled = flattened = False
    while len(node.users) == 1:
        (user,) = node.users
        if operator := _operator(stage, user, node):
            return replace(operator, pooled=pooled, flattened=flattened)
        if _pools(stage, user, node) and not flattened:
            pooled = True
        elif _flattens(stage, user, node) or (_averages(user, node, dims) and not flattened):
            flattened = True
        elif not _is_identity(stage, user, node):
            return None
        node = user
    return None


def sole_writer(stage: nn.Module, result: int) -> Operator | None:
    """Find the convolution or linear layer that makes a result of a stage, where nothing else reads that.

    Args:
        stage: a stage.
        result: the number of the result.

    Returns:
        the operator; None where it is another kind of code.
    """
    if not isinstance(stage, Stage):
        return None
    (output,) = (node for node in stage.graph.nodes if node.op == "output")
    results = tree_leaves(output.args)
    node = results[result]
    if results.count(node) > 1:
        return None
    while isinstance(node, fx.Node) and len(node.users) == 1:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node):
            return None
        if operator := _operator(stage, node, before):
            return operator
        if not _is_identity(stage, node, before):
            return None
        node = before
    return None


def _operator(stage: Stage, node: fx.Node, source: fx.Node) -> Operator | None:
    """The layer that a graph's node calls with `source` alone, once, where its weights are nobody else's."""
    module = _called(stage, node, source)
    if not (type(module) is nn.Linear or isinstance(module, _CONVOLUTIONS)) or hasattr(module, "parametrizations"):
        return None
    plain = type(module) in (nn.Linear, *_CONVOLUTIONS)
    path = str(node.target)
    called = [str(other.target) for other in stage.graph.nodes if other.op == "call_module"]
    read_apart = any(other.op == "get_attr" and str(other.target).startswith(f"{path}.") for other in stage.graph.nodes)
    assert module is not None
    hooked = module._forward_pre_hooks or module._forward_hooks
    return None if called.count(path) > 1 or read_apart or hooked else Operator(path, cast("Layer", module), plain)


def _called(stage: Stage, node: fx.Node, source: fx.Node) -> nn.Module | None:
    if node.op != "call_module" or node.args != (source,) or node.kwargs:
        return None
    return stage.get_submodule(str(node.target))


def _calls(node: fx.Node, source: fx.Node, *functions: Any) -> bool:
    """Whether a node calls one of the functions on `source` and constants."""
    constants = [*node.args[1:], *node.kwargs.values()]
    return (
        node.op == "call_function"
        and node.target in functions
        and node.args[:1] == (source,)
        and not any(isinstance(leaf, fx.Node) for leaf in tree_leaves(constants))
    )


def _is_identity(stage: Stage, node: fx.Node, source: fx.Node) -> bool:
    if _calls(node, source, F.dropout):
        return node.kwargs.get("training", True) is False
    if _calls(node, source, _ATEN.dropout.default):
        return node.args[2:] == (False,)
    return isinstance(_called(stage, node, source), nn.Identity | DropoutBase)


def _pools(stage: Stage, node: fx.Node, source: fx.Node) -> bool:
    return _calls(node, source, *_POOL_FUNCTIONS) or isinstance(_called(stage, node, source), _POOLS)


def _flattens(stage: Stage, node: fx.Node, source: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "flatten":
        return node.args == (source, 1) and not node.kwargs
    if _calls(node, source, torch.flatten, _ATEN.flatten.using_ints):
        return node.args == (source, 1) and not node.kwargs
    module = _called(stage, node, source)
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)


def _averages(node: fx.Node, source: fx.Node, dims: int) -> bool:
    """Whether a node takes the mean over all positions, so that one vector for each input is left."""
    if (node.op, node.target) != ("call_method", "mean") and not _calls(node, source, torch.mean, _ATEN.mean.dim):
        return False
    if len(node.args) != 2 or node.args[0] is not source or node.kwargs or dims < 3:
        return False
    over = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    return all(type(number) is int for number in over) and {n % dims for n in over} == set(range(2, dims))  # type: ignore[operator]
