"""Functional convolutions and linear operators of a stage as layers, so that a map can be taken into their weights.

Networks traced by torch.export, and code that calls `torch.nn.functional`, hold weights as attributes that an operator
reads. Where it alone reads them and all else is constant, it is what a layer of torch would compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from branchnet.stages import Stage
from branchnet.stages.codegen.program import Program
from branchnet.stages.graph.dataflow import attribute
from branchnet.utils.installed_torch.torch_internals import tree_leaves

Made: TypeAlias = Callable[..., nn.Module]
_ATEN = torch.ops.aten
_FOLDED = "functional operators have been made layers, to fold stitches"
_CONVOLUTION = ("bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
_OPERATORS: Mapping[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.linear: (nn.Linear, ("bias",)),
    _ATEN.linear.default: (nn.Linear, ("bias",)),
    F.conv1d: (nn.Conv1d, _CONVOLUTION),
    F.conv2d: (nn.Conv2d, _CONVOLUTION),
    F.conv3d: (nn.Conv3d, _CONVOLUTION),
    _ATEN.conv1d.default: (nn.Conv1d, _CONVOLUTION),
    _ATEN.conv2d.default: (nn.Conv2d, _CONVOLUTION),
    _ATEN.conv3d.default: (nn.Conv3d, _CONVOLUTION),
    _ATEN.conv1d.padding: (nn.Conv1d, _CONVOLUTION),
    _ATEN.conv2d.padding: (nn.Conv2d, _CONVOLUTION),
    _ATEN.conv3d.padding: (nn.Conv3d, _CONVOLUTION),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
    _ATEN.conv_transpose1d.default: (nn.ConvTranspose1d, _TRANSPOSED),
    _ATEN.conv_transpose2d.input: (nn.ConvTranspose2d, _TRANSPOSED),
    _ATEN.conv_transpose3d.input: (nn.ConvTranspose3d, _TRANSPOSED),
}
"""What each operator computes, and the names of its arguments after the input and the weight."""


def with_layers(stage: nn.Module) -> nn.Module:
    """Make layers of a stage's functional convolutions and linear operators.

    Args:
        stage: a stage or head in evaluation mode, which is left as it is.

    Returns:
        a stage that computes the same, on copies of the weights; it can only be evaluated. The stage itself where it
        has no such operator.
    """
    if not isinstance(stage, Stage) or not any(_layer_type(node) for node in stage.graph.nodes):
        return stage
    graph = copy.deepcopy(stage.graph)
    layers = {}
    for node in list(graph.nodes):
        if (made := _layer(stage, node)) is not None:
            layers[node] = made
    if not layers:
        return stage
    evaluation = stage.running
    held = copy.deepcopy(stage)
    for number, (node, layer) in enumerate(layers.items()):
        _put(held, graph, node, layer, f"layer_{number}")
    program = Program(graph, evaluation.output, evaluation.device, evaluation.sizes)
    found = Stage(stage._name, program, None, stage._keywords, _FOLDED, stage._left_in_evaluation)
    for name, module in held._modules.items():
        found.add_module(name, module)
    for name, parameter in held._parameters.items():
        found.register_parameter(name, parameter)
    for name, buffer in held._buffers.items():
        found.register_buffer(name, buffer, persistent=name not in held._non_persistent_buffers_set)
    return found.eval()


def _layer_type(node: fx.Node) -> tuple[type[nn.Module], tuple[str, ...]] | None:
    return _OPERATORS.get(node.target) if node.op == "call_function" else None


def _layer(stage: Stage, node: fx.Node) -> nn.Module | None:
    """The layer that computes what an operator does; None where its weights are not its own, or arguments vary."""
    found = _layer_type(node)
    if found is None or len(node.args) < 2 or not isinstance(node.args[0], fx.Node):
        return None
    kind, names = found
    given = dict(zip(names, node.args[2:], strict=False)) | dict(node.kwargs)
    weight, bias = _own(stage, node.args[1]), _own(stage, given.get("bias"))
    settings = {name: value for name, value in given.items() if name != "bias"}
    if weight is None or (bias is None) != (given.get("bias") is None):
        return None
    if not set(settings) <= set(names) or any(isinstance(leaf, fx.Node) for leaf in tree_leaves(settings)):
        return None
    return _made(kind, weight, bias, {name: _plain(value) for name, value in settings.items()})


def _own(stage: Stage, node: Any) -> Tensor | None:
    """The tensor that an attribute of the stage holds, where one operator alone reads it."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) > 1:
        return None
    readers = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == node.target]
    value = attribute(stage, str(node.target))
    return value if isinstance(value, Tensor) and len(readers) == 1 else None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _made(kind: type[nn.Module], weight: Tensor, bias: Tensor | None, settings: Mapping[str, Any]) -> nn.Module | None:
    """A layer with these weights."""
    outputs, inputs = weight.shape[:2]
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
    if issubclass(kind, nn.Linear):
        if weight.dim() != 2:
            return None
        layer: nn.Module = kind(inputs, outputs, **options)
    else:
        groups = settings.get("groups", 1)
        if "Transpose" in kind.__name__:
            inputs, outputs = outputs, inputs * groups
        else:
            inputs = inputs * groups
        layer = kind(inputs, outputs, tuple(weight.shape[2:]), **options, **settings)
    layer.register_parameter("weight", nn.Parameter(weight.detach().clone(), weight.requires_grad))
    if bias is not None:
        layer.register_parameter("bias", nn.Parameter(bias.detach().clone(), bias.requires_grad))
    return layer.eval()


def _put(stage: Stage, graph: fx.Graph, node: fx.Node, layer: nn.Module, name: str) -> None:
    """Let the graph call the layer in the operator's place, and drop what the operator read."""
    source, *reads = (arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, fx.Node))
    with graph.inserting_before(node):
        called = graph.call_module(name, (source,))
    node.replace_all_uses_with(called)
    graph.erase_node(node)
    for read in reads:
        graph.erase_node(read)
        owner, _, leaf = str(read.target).rpartition(".")
        delattr(stage.get_submodule(owner), leaf)
    stage.add_module(name, layer)
