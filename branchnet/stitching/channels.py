"""Which dimension of a cut's tensors holds the channels, and tensors as rows of channels.

A stitch maps channels position by position, so it has to know that an image has them in dimension 1 and a sequence in
the last one. The layers next to the tensor say so: those that read it first, then those that made it. A convolution and
BatchNorm have channels in dimension 1, linear layers and LayerNorm in the last; the size of their weights must be that
of the dimension, which also tells LayerNorm over images from LayerNorm over tokens. Where no layer is met, dimension 1
of four and more dimensions is taken, else the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn

from branchnet.stages import Stage
from branchnet.stages.graph.dataflow import attribute
from branchnet.utils.installed_torch.torch_internals import BatchNormBase, ConvBase

Axes = tuple[int, ...]
"""For each dimension of an operator's tensor the one of the cut's tensor that it is."""
Found = tuple[int, int | None]
"""The dimension that a layer has its channels in, 1 or -1, and how many they are, where that is known."""
_SECOND_NAMES = ("conv", "batch_norm", "group_norm")
_LAST_NAMES = ("linear", "layer_norm", "addmm", "matmul")
_REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "std", "var")
_STEPS = 24
"""Operators gone through: layers stand near; a residual connection leads on to the next block."""


def channel_dimension(before: nn.Module | None, after: nn.Module, index: int, tensor: Tensor) -> int:
    """Say which dimension of a cut's tensor holds the channels.

    Args:
        before: the stage that returns the cut; None where it is not known.
        after: the stage or head that takes it.
        index: the number of the tensor in the cut.
        tensor: the tensor, at least two-dimensional.

    Returns:
        1 or the number of the last dimension.
    """
    last = tensor.dim() - 1
    for layers in (_readers(after, index, last + 1), _makers(before, index, last + 1)):
        for axes, (kind, size) in layers:
            if -len(axes) <= kind < len(axes) and (dimension := _fitting(axes[kind], size, tensor)) is not None:
                return dimension
    return 1 if tensor.dim() > 3 else last


def _fitting(dimension: int, size: int | None, tensor: Tensor) -> int | None:
    """The dimension, 1 or the last, that a layer means: its own where the size fits, else the other one."""
    last = tensor.dim() - 1
    candidates = [found for found in (dimension, 1, last) if found in (1, last)]
    return next((found for found in candidates if size is None or tensor.shape[found] == size), None)


def _readers(stage: nn.Module, index: int, dims: int) -> Iterator[tuple[Axes, Found]]:
    if not isinstance(stage, Stage):
        return
    placeholders = [node for node in stage.graph.nodes if node.op == "placeholder"]
    waiting: list[tuple[fx.Node, Axes]] = [(node, tuple(range(dims))) for node in placeholders[index : index + 1]]
    for _ in range(_STEPS):
        if not waiting:
            return
        node, axes = waiting.pop(0)
        for user in node.users:
            if (found := _layer(user, stage, made=False)) is not None:
                yield axes, found
            elif (after := _axes_after(user, stage, axes)) is not None:
                waiting.append((user, after))


def _makers(stage: nn.Module | None, index: int, dims: int) -> Iterator[tuple[Axes, Found]]:
    if not isinstance(stage, Stage):
        return
    returned = stage.graph.output_node().args[0]
    values = returned if isinstance(returned, tuple | list) else [returned]
    waiting = [node for node in values[index : index + 1] if isinstance(node, fx.Node)]
    for _ in range(_STEPS):
        if not waiting:
            return
        node = waiting.pop(0)
        if (found := _layer(node, stage, made=True)) is not None:
            yield tuple(range(dims)), found
        elif _axes_after(node, stage, tuple(range(dims))) == tuple(range(dims)):
            waiting += node.all_input_nodes


def _axes_after(node: fx.Node, root: nn.Module, axes: Axes) -> Axes | None:
    """The dimensions of the cut's tensor that those of an operator's result are; None where they are joined."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))
    given = [*node.args[1:], *node.kwargs.values()] if module is None else getattr(module, "dims", ())
    numbers = [
        n
        for arg in given  # torchvision.ops.Permute has `dims`
        for n in (arg if isinstance(arg, list | tuple) else (arg,))
        if isinstance(n, int) and not isinstance(n, bool)
    ]
    name = name.lower().split(".")[0]
    if any(part in name for part in ("flatten", "view", "reshape")):
        return None
    if "permute" in name and len(numbers) == len(axes):
        return tuple(axes[number] for number in numbers)
    if "transpose" in name and len(numbers) == 2:
        swapped = list(axes)
        swapped[numbers[0]], swapped[numbers[1]] = axes[numbers[1]], axes[numbers[0]]
        return tuple(swapped)
    if name in _REDUCTIONS and not (True in given or node.kwargs.get("keepdim")):
        gone = {axes[number] for number in numbers}
        return tuple(axis for axis in axes if axis not in gone) if gone else None
    return axes


def _layer(node: fx.Node, root: nn.Module, *, made: bool) -> Found | None:
    """Where a layer has its channels, of what it reads or of what it makes; None for what is no such layer."""
    if node.op == "call_module":
        return _module_channels(root.get_submodule(str(node.target)), made)
    name = str(getattr(node.target, "__name__", node.target)).lower()
    weights = [attribute(root, str(arg.target)) for arg in node.all_input_nodes if arg.op == "get_attr"]
    shape = next((weight.shape for weight in weights if isinstance(weight, Tensor)), None)
    if any(part in name for part in _SECOND_NAMES):
        size = None if shape is None or "conv" in name else shape[-1]
        return 1, size
    if any(part in name for part in _LAST_NAMES):
        if shape is None or "norm" in name:
            return -1, None if shape is None else shape[-1]
        return -1, shape[0 if made else -1]
    return None


def _module_channels(module: nn.Module, made: bool) -> Found | None:
    if isinstance(module, ConvBase):
        return 1, module.out_channels if made else module.in_channels
    if isinstance(module, BatchNormBase):
        return 1, module.num_features
    if isinstance(module, nn.GroupNorm):
        return 1, module.num_channels
    if isinstance(module, nn.Linear):
        return -1, module.out_features if made else module.in_features
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return (1 if "2d" in type(module).__name__.lower() else -1), module.normalized_shape[-1]
    return (1, None) if "Pool" in type(module).__name__ and not made else None


def as_rows(tensor: Tensor, dimension: int) -> Tensor:
    """Reshape a tensor to (positions, channels).

    Args:
        tensor: any shape.
        dimension: the one that holds the channels.

    Returns:
        all other dimensions as one, in order, and the channels last.
    """
    return tensor.movedim(dimension, -1).reshape(-1, tensor.shape[dimension])


def feature_indices(cut: Sequence[Any], of_one: Sequence[Any]) -> list[int]:
    """Number the tensors of a cut that hold features of the inputs: floating-point, two dimensions or more.

    Their shapes change with the number of inputs, wherever it stands: in the first dimension, in the second one of
    sequences, multiplied with windows. Masks, sizes, integers and what is the same for all inputs are no features.

    Args:
        cut: the values alive at a location, for several inputs.
        of_one: the same for one input.

    Returns:
        their positions in the cut.
    """
    return [
        index
        for index, (value, single) in enumerate(zip(cut, of_one, strict=True))
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and (value.shape != single.shape)
    ]


def copied(cut: Sequence[Any]) -> tuple[Any, ...]:
    """Copy a cut, since stages may write into the tensors that they are given.

    Args:
        cut: the values alive at a location.

    Returns:
        the values, tensors among them cloned.
    """
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in cut)
