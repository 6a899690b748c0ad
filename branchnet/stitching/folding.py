"""Stitches taken into the weights of the layers next to them: nothing is left to compute, exact to rounding.

A layer that reads the mapped tensor alone, `K (W x + c) + b`, becomes `(K W) x + (b + K c)`. A convolution that pads
with zeros adds `K c` nowhere near an edge only; there the map is written as `W (x - p)` with `W p + c = 0`, so that
padding `x - p` with zeros is padding the mapped tensor with zeros. Where no such p is found the map stays. A layer that
makes the tensor, `K x + b`, becomes `(W K) x + (W b + c)`. Transposed convolutions spread `K c` unevenly over
positions: they, too, read `x - p`. Functional operators whose weights nothing else reads become layers. Convolutions of
classes that are not torch's own are compared on random numbers before they are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from branchnet.stitching.functional_layers import with_layers
from branchnet.stitching.stage_operators import Layer, Operator, sole_reader, sole_writer
from branchnet.stitching.stitch import AffineMap, Stitch, StitchedStage
from branchnet.utils.installed_torch.torch_internals import ConvBase

Shapes: TypeAlias = Mapping[int, Sequence[int]]
_ROUNDING = 1e-5
"""How far the rounding of p may move what is mapped, as a share of the map's constant; of results that are compared."""
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


def fold_into_stage(stitched: StitchedStage, shapes: Shapes, precision: torch.dtype | None = None) -> None:
    """Take the maps of a stitch into the layers of its stage that read the mapped tensors, where they alone do.

    Args:
        stitched: the stage with its stitch, changed in place.
        shapes: of the mapped tensors as they arrive, by their numbers.
        precision: the type that the weights will have; by default that of the layers.
    """

    stitch, stage = stitched.stitch, with_layers(stitched.stage)
    for index, affine in stitch.affine_maps.items():
        if operator := sole_reader(stage, index, len(shapes[index])):
            for made in _after_map(operator, affine, len(shapes[index]), precision):
                if operator.plain or _agree([affine, operator.module], [made], shapes[index]):
                    _replace(stitch, index, stage, operator, made)
                    stitched.stage = stage
                    break
    stitch.folded = stitch.folded or not stitch.maps


def fold_into_result(stitch: Stitch, before: nn.Module, shapes: Shapes) -> nn.Module:
    """Take the maps of a stitch into the layers that make the mapped tensors; nothing else may read their results.

    Args:
        stitch: the stitch, changed in place.
        before: the stage before it, changed in place or replaced.
        shapes: of the mapped tensors as they arrive, by their numbers.

    Returns:
        the stage before it, to be put in the place of `before`.
    """
    stage = with_layers(before)
    found = before
    for index, affine in stitch.affine_maps.items():
        operator = sole_writer(stage, index)
        made = None if operator is None else _before_map(operator, affine, len(shapes[index]))
        if operator is None or made is None:
            continue
        read = (shapes[index][0], _kernel(made).shape[1], *shapes[index][2:])
        if operator.plain or _agree([operator.module, affine], [made], read):
            _replace(stitch, index, stage, operator, made)
            found = stage
    stitch.folded = stitch.folded or not stitch.maps
    return found


def _replace(stitch: Stitch, index: int, stage: nn.Module, operator: Operator, made: nn.Module) -> None:
    """Put a layer that has taken a map in into the old one's place."""
    parent, _, name = operator.path.rpartition(".")
    stage.get_submodule(parent).add_module(name, made.train(operator.module.training))
    del stitch.maps[str(index)]


def _agree(one: Sequence[nn.Module], other: Sequence[nn.Module], shape: Sequence[int]) -> bool:
    """Whether modules called one after another compute the same of random numbers, up to the rounding of weights."""
    inputs = torch.randn(tuple(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = [inputs, inputs]
    with torch.no_grad():
        for number, modules in enumerate((one, other)):
            for module in modules:
                results[number] = copy.deepcopy(module).cpu().double()(results[number])
    wanted, found = results
    return wanted.shape == found.shape and bool((wanted - found).abs().max() <= _ROUNDING * wanted.abs().max())


def _after_map(operator: Operator, affine: AffineMap, dims: int, precision: torch.dtype | None) -> Iterator[nn.Module]:
    """Layers that may take the place of a map and the layer that reads it."""
    layer, (weight, constant) = operator.module, _matrix(affine)
    if isinstance(layer, nn.Linear):
        if affine.dimension == 1 if operator.flattened else affine.dimension == dims - 1 and not operator.pooled:
            kernel = layer.weight.double().unflatten(1, (len(weight), -1))
            yield _with_weights(layer, _mixed(kernel, weight).flatten(1), _plus(layer, kernel.sum(2) @ constant))
        return
    if layer.groups > 1 or affine.dimension != 1 or operator.flattened:
        return
    kernel = _kernel(layer)
    if not _pads_zeros(layer):
        yield _with_weights(layer, _mixed(kernel, weight), _plus(layer, kernel.flatten(2).sum(2) @ constant))
    shift = _padding_value(weight, constant, layer.weight.dtype if precision is None else precision)
    if shift is not None:
        unshifted = _with_weights(layer, _mixed(kernel, weight), layer.bias)
        shaped = shift.to(layer.weight).reshape(-1, *[1] * (kernel.dim() - 2))
        yield ShiftedInput(unshifted, shaped) if bool(shift.any()) else unshifted


def _before_map(operator: Operator, affine: AffineMap, dims: int) -> Layer | None:
    layer, (weight, constant) = operator.module, _matrix(affine)
    grouped = not isinstance(layer, nn.Linear) and layer.groups > 1
    if grouped or affine.dimension != (dims - 1 if isinstance(layer, nn.Linear) else 1):
        return None
    bias = constant if layer.bias is None else weight @ layer.bias.double() + constant
    return _with_weights(layer, torch.einsum("dk,k...->d...", weight, _kernel(layer)), bias)


def _matrix(affine: AffineMap) -> tuple[Tensor, Tensor]:
    """The map as (C', C) and (C',), float64."""
    weight = affine.weights[0].detach().double()
    for factor in list(affine.weights)[1:]:
        weight = factor.detach().double() @ weight
    return weight, affine.bias.detach().double()


def _mixed(kernel: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("ok...,kc->oc...", kernel, weight)


def _kernel(layer: Layer) -> Tensor:
    """The weight with the outputs in dimension 0 and the inputs in dimension 1, float64."""
    weight = layer.weight.detach().double()
    return weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight


def _pads_zeros(layer: ConvBase) -> bool:
    if layer.transposed:
        return True  # a position gets some of the kernel's entries alone, so that a constant does not stay one
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
    """A copy of a convolution or linear layer with another kernel, outputs first, and bias."""
    made, trained = copy.deepcopy(layer), layer.weight.requires_grad
    stored = kernel.detach().transpose(0, 1).contiguous() if getattr(layer, "transposed", False) else kernel.detach()
    made.weight = nn.Parameter(stored.to(layer.weight), trained)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(layer.weight), trained)
    outputs, inputs = kernel.shape[:2]
    if isinstance(made, nn.Linear):
        made.out_features, made.in_features = outputs, inputs
    else:
        made.out_channels, made.in_channels = outputs, inputs
    return made
