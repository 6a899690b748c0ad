"""Which dimension of a cut's tensors holds the channels, and tensors as rows of channels.

A stitch maps channels position by position, so it has to know that an image has them in dimension 1 and a sequence in
the last one. The operators that read a tensor say so: convolutions and BatchNorm take dimension 1, linear layers and
LayerNorm the last. Where none of them is reached, dimension 1 of four and more dimensions is taken, else the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_SECOND = (_ConvNd, _BatchNorm, nn.GroupNorm)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)
_SECOND_NAMES = ("conv", "batch_norm", "group_norm", "pool")
_LAST_NAMES = ("linear", "layer_norm", "addmm", "matmul")
_STEPS = 12
"""Operators gone through: what reads a tensor stands near; a residual connection is followed to the next block."""


def channel_dimension(graph: fx.Graph, root: nn.Module, argument: int, tensor: Tensor) -> int:
    """Say which dimension of a stage's input holds the channels.

    Args:
        graph: the stage's graph.
        root: the module that holds what the graph calls.
        argument: the number of the input.
        tensor: such an input, at least two-dimensional.

    Returns:
        1 or the number of the last dimension.
    """
    last, axes = tensor.dim() - 1, tuple(range(tensor.dim()))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    waiting, seen = [(node, axes) for node in placeholders[argument : argument + 1]], 0
    while waiting and seen < _STEPS:
        node, axes = waiting.pop(0)
        for user in node.users:
            seen += 1
            if (kind := _reads(user, root)) is not None and axes[kind] in (1, last):
                return axes[kind]
            if (after := _axes_after(user, root, axes)) is not None:
                waiting.append((user, after))
    return 1 if tensor.dim() > 3 else last


def _axes_after(node: fx.Node, root: nn.Module, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions of the cut's tensor that those of an operator's result are; None where they are joined."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))
    given = node.args[1:] if module is None else getattr(module, "dims", ())  # torchvision.ops.Permute has such
    numbers = [n for arg in given for n in (arg if isinstance(arg, list | tuple) else (arg,)) if isinstance(n, int)]
    name = name.lower()
    if any(part in name for part in ("flatten", "view", "reshape")):
        return None
    if "permute" in name and len(numbers) == len(axes):
        return tuple(axes[number] for number in numbers)
    if "transpose" in name and len(numbers) == 2:
        swapped = list(axes)
        swapped[numbers[0]], swapped[numbers[1]] = axes[numbers[1]], axes[numbers[0]]
        return tuple(swapped)
    if name == "mean" and numbers and not node.kwargs.get("keepdim") and node.args[2:3] != (True,):
        return tuple(axis for axis in axes if axis not in {axes[number] for number in numbers})
    return axes


def _reads(node: fx.Node, root: nn.Module) -> int | None:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        second = isinstance(module, _SECOND) or "Pool" in type(module).__name__
        return 1 if second else -1 if isinstance(module, _LAST) else None
    name = str(getattr(node.target, "__name__", node.target)).lower()
    if any(part in name for part in _SECOND_NAMES):
        return 1
    return -1 if any(part in name for part in _LAST_NAMES) else None


def as_rows(tensor: Tensor, dimension: int) -> Tensor:
    """Reshape a tensor to (positions, channels).

    Args:
        tensor: any shape.
        dimension: the one that holds the channels.

    Returns:
        all other dimensions as one, in order, and the channels last.
    """
    return tensor.movedim(dimension, -1).reshape(-1, tensor.shape[dimension])


def mapped_indices(cut: Sequence[object], inputs: int) -> list[int]:
    """Number the tensors of a cut that hold features: floating-point, two dimensions or more, the inputs first.

    Args:
        cut: the values alive at a location; masks, sizes and integers among them are no features.
        inputs: how many inputs they were computed from.

    Returns:
        their positions in the cut.
    """
    return [
        index
        for index, value in enumerate(cut)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and len(value) == inputs
    ]


def copied(cut: Sequence[Any]) -> tuple[Any, ...]:
    """Copy a cut, since stages may write into the tensors that they are given.

    Args:
        cut: the values alive at a location.

    Returns:
        the values, tensors among them cloned.
    """
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in cut)
