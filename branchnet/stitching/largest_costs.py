"""What a stitching layer costs at most at every location of a staged network."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from branchnet.stages import StagedNetwork
from branchnet.stitching.closed_form import largest_rank
from branchnet.stitching.fitting import feature_dimensions
from branchnet.stitching.stitch import AffineMap, Stitch


def stitch_costs(network: StagedNetwork) -> dict[str, tuple[int, ...]]:
    """Count parameters and multiply-adds of one stitch at each location, on one input of the example's size.

    Maps of more than 362 channels have a lower rank; it may be lower still where that explains as much, so that these
    counts are upper bounds.

    Args:
        network: one of the networks that were split together.

    Returns:
        under `params` and `flops` one number for each location.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    >>> staged = branchnet.split(network, torch.zeros(1, 3, 16, 16), locations=["1", "3"])
    >>> branchnet.stitching.stitch_costs(staged)  # 8 x 8 + 8 numbers; 14 x 14 and 12 x 12 positions
    {'params': (72, 72), 'flops': (12544, 9216)}
    """
    batch = network.interface.batch or 1
    params, flops = [], []
    for maps in _maps(network):
        sizes = [(shape[dimension], prod(shape) // batch) for shape, dimension in maps.values()]
        params.append(sum(_numbers(channels) + channels for channels, _ in sizes))
        flops.append(sum(_numbers(channels) * elements // channels for channels, elements in sizes))
    return {"params": tuple(params), "flops": tuple(flops)}


def largest_stitches(network: StagedNetwork, dtype: torch.dtype = torch.float32) -> tuple[Stitch, ...]:
    """Make the stitch at each location that `stitch_costs` counts, with weights of 0, to measure its time.

    Args:
        network: one of the networks that were split together.
        dtype: of its weights.

    Returns:
        one for each location, called with the cut there.
    """
    stitches = []
    for maps in _maps(network):
        affine = {}
        for index, (shape, dimension) in maps.items():
            channels = shape[dimension]
            rank = largest_rank(channels, channels)
            affine[index] = AffineMap(channels, channels, dimension, None if rank == channels else rank).to(dtype)
        stitches.append(Stitch("", "", affine))
    return tuple(stitches)


def _maps(network: StagedNetwork) -> Iterator[dict[int, tuple[tuple[int, ...], int]]]:
    """For each location the tensors that a stitch maps: shape, and the dimension of the channels."""
    following = [*network.stages[1:], network.head]
    for before, cut, after in zip(network.stages, network.cuts, following, strict=True):
        # Tensors that hold the network's inputs are of no donor, and get no map; the others may hold features.
        values = [
            torch.empty(tensor.shape, device="meta", dtype=getattr(torch, tensor.dtype)) if tensor.stage >= 0 else None
            for tensor in cut
        ]
        single = [value if value is None or not value.dim() else value[:0] for value in values]
        yield {
            index: (tuple(values[index].shape), dimension)  # type: ignore[union-attr]
            for index, dimension in feature_dimensions(values, single, before, after).items()
        }


def _numbers(channels: int) -> int:
    """How many numbers the matrices of a map between as many channels hold."""
    rank = largest_rank(channels, channels)
    return channels * channels if rank == channels else 2 * rank * channels
