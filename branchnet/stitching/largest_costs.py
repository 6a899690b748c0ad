"""What a stitching layer costs at most at every location of a staged network."""

from __future__ import annotations

from math import prod

import torch

from branchnet.stages import StagedNetwork
from branchnet.stitching.closed_form import largest_rank
from branchnet.stitching.fitting import feature_dimensions


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
    following = [*network.stages[1:], network.head]
    batch = network.interface.batch or 1
    params, flops = [], []
    for before, cut, after in zip(network.stages, network.cuts, following, strict=True):
        # Tensors that hold the network's inputs are of no donor, and get no map; the others may hold features.
        values = [
            torch.empty(tensor.shape, device="meta", dtype=getattr(torch, tensor.dtype)) if tensor.stage >= 0 else None
            for tensor in cut
        ]
        single = [value if value is None or not value.dim() else value[:0] for value in values]
        maps = {
            index: (values[index], dimension)  # the channels and the positions that they are mapped at
            for index, dimension in feature_dimensions(values, single, before, after).items()
        }
        sizes = [(tensor.shape[dimension], prod(tensor.shape) // batch) for tensor, dimension in maps.values()]  # type: ignore[union-attr]
        params.append(sum(_numbers(channels) + channels for channels, _ in sizes))
        flops.append(sum(_numbers(channels) * elements // channels for channels, elements in sizes))
    return {"params": tuple(params), "flops": tuple(flops)}


def _numbers(channels: int) -> int:
    """How many numbers the matrices of a map between as many channels hold."""
    rank = largest_rank(channels, channels)
    return channels * channels if rank == channels else 2 * rank * channels
