"""Stitches taken into the weights of the layers next to them: nothing is left to compute, exact to rounding.

A layer that reads the mapped tensor alone, `K (W x + c) + b`, becomes `(K W) x + (b + K c)`. A convolution that pads
with zeros adds `K c` nowhere near an edge only; there the map is written as `W (x - p)` with `W p + c = 0`, so that
padding `x - p` with zeros is padding the mapped tensor with zeros. Where no such p is found the map stays. A layer that
makes the tensor, `K x + b`, becomes `(W K) x + (W b + c)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from branchnet.stitching.stage_operators import Layer, Operator, sole_reader, sole_writer
from branchnet.stitching.stitch import AffineMap, Stitch, StitchedStage

_ROUNDING = 1e-5
"""Of the map's constant: how far the rounding of p may move what is mapped."""
_LEAST_GROWTH = 4.0


class ShiftedInput(nn.Module):
    """A convolution of `x - shift`: it pads x with `shift`, channel by channel, and subtracts it everywhere.

    Args:
        operator: the convolution.
        shift: (C, 1, ...), with as many dimensions as x without the batch.
    """

    shift: Tensor

    def __init__(self, operator: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.operator = operator
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, C, *spatial).

        Returns:
            what the convolution makes of `x - shift`.
        """
        result: Tensor = self.operator(x - self.shift)
        return result


def fold_into_stage(stitched: StitchedStage, dims: Mapping[int, int], precision: torch.dtype | None = None) -> None:
    """Take the maps of a stitch into the layers of its stage that read the mapped tensors, where they alone do.

    Args:
        stitched: the stage with its stitch, changed in place.
        dims: how many dimensions each mapped tensor has.
        precision: the type that the weights will have; by default that of the layers.
    """

    def folded(operator: Operator, index: int, affine: AffineMap) -> nn.Module | None:
        return _after_map(operator, affine, dims[index], precision)

    _fold(stitched.stitch, stitched.stage, sole_reader, folded)


def fold_into_result(stitch: Stitch, before: nn.Module, dims: Mapping[int, int]) -> None:
    """Take the maps of a stitch into the layers that make the mapped tensors; nothing else may read their results.

    Args:
        stitch: the stitch, changed in place.
        before: the stage before it, changed in place.
        dims: how many dimensions each mapped tensor has.
    """

    def folded(operator: Operator, index: int, affine: AffineMap) -> nn.Module | None:
        return _before_map(operator, affine, dims[index])

    _fold(stitch, before, sole_writer, folded)


def _fold(
    stitch: Stitch,
    stage: nn.Module,
    find: Callable[[nn.Module, int], Operator | None],
    folded: Callable[[Operator, int, AffineMap], nn.Module | None],
) -> None:
    for index, affine in stitch.affine_maps.items():
        operator = find(stage, index)
        replacement = None if operator is None else folded(operator, index, affine)
        if operator is not None and replacement is not None:
            parent, _, name = operator.path.rpartition(".")
            stage.get_submodule(parent).add_module(name, replacement.train(operator.module.training))
            del stitch.maps[str(index)]
    stitch.folded = stitch.folded or not stitch.maps


def _after_map(operator: Operator, affine: AffineMap, dims: int, precision: torch.dtype | None) -> nn.Module | None:
    layer, (weight, constant) = operator.module, _matrix(affine)
    if isinstance(layer, nn.Linear):
        if not (affine.dimension == 1 if operator.flattened else affine.dimension == dims - 1 and not operator.pooled):
            return None
        kernel = layer.weight.double().unflatten(1, (len(weight), -1))
        return _with_weights(layer, _mixed(kernel, weight).flatten(1), _plus(layer, kernel.sum(2) @ constant))
    if layer.groups > 1 or affine.dimension != 1 or operator.flattened:
        return None
    kernel = layer.weight.double()
    if not _pads_zeros(layer):
        return _with_weights(layer, _mixed(kernel, weight), _plus(layer, kernel.flatten(2).sum(2) @ constant))
    shift = _padding_value(weight, constant, layer.weight.dtype if precision is None else precision)
    if shift is None:
        return None
    unshifted = _with_weights(layer, _mixed(kernel, weight), layer.bias)
    if not bool(shift.any()):
        return unshifted
    return ShiftedInput(unshifted, shift.to(layer.weight).reshape(-1, *[1] * (kernel.dim() - 2)))


def _before_map(operator: Operator, affine: AffineMap, dims: int) -> nn.Module | None:
    layer, (weight, constant) = operator.module, _matrix(affine)
    grouped = not isinstance(layer, nn.Linear) and layer.groups > 1
    if grouped or affine.dimension != (dims - 1 if isinstance(layer, nn.Linear) else 1):
        return None
    bias = constant if layer.bias is None else weight @ layer.bias.double() + constant
    return _with_weights(layer, torch.einsum("dk,k...->d...", weight, layer.weight.double()), bias)


def _matrix(affine: AffineMap) -> tuple[Tensor, Tensor]:
    """The map as (C', C) and (C',), float64."""
    weight = affine.weights[0].detach().double()
    for factor in list(affine.weights)[1:]:
        weight = factor.detach().double() @ weight
    return weight, affine.bias.detach().double()


def _mixed(kernel: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("ok...,kc->oc...", kernel, weight)


def _pads_zeros(layer: _ConvNd) -> bool:
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False  # other padding repeats values that are there, which the map may as well be applied to afterwards
    sizes = layer.kernel_size if layer.padding == "same" else [1 + int(pad) for pad in layer.padding]
    return any(size > 1 for size in sizes)


def _padding_value(weight: Tensor, constant: Tensor, precision: torch.dtype) -> Tensor | None:
    """The smallest p with `weight @ p = -constant`; None where there is none, or rounding it would be felt."""
    value = torch.linalg.lstsq(weight.cpu(), -constant.cpu().unsqueeze(1), driver="gelsd").solution.squeeze(1)
    value = value.to(weight.device)
    largest = constant.abs().max()
    allowed = max(_LEAST_GROWTH, _ROUNDING / torch.finfo(precision).eps)
    solved = (weight @ value + constant).abs().max() <= 1e-9 * largest
    return value if bool(solved) and bool((weight.abs() @ value.abs()).max() <= allowed * largest) else None


def _plus(layer: Layer, added: Tensor) -> Tensor:
    return added if layer.bias is None else layer.bias.double() + added


def _with_weights(layer: Layer, kernel: Tensor, bias: Tensor | None) -> Layer:
    """A copy of a convolution or linear layer with another kernel and bias."""
    made, trained = copy.deepcopy(layer), layer.weight.requires_grad
    made.weight = nn.Parameter(kernel.detach().to(layer.weight), trained)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(layer.weight), trained)
    outputs, inputs = kernel.shape[:2]
    if isinstance(made, nn.Linear):
        made.out_features, made.in_features = outputs, inputs
    else:
        made.out_channels, made.in_channels = outputs, inputs
    return made
