"""What the stitches of a network cost, from the shapes of the tensors that arrive at them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.utils.modes import evaluation_mode

Edge = tuple[str, str]


@dataclass(frozen=True)
class StitchCost:
    """Cost of one stitch.

    Attributes:
        parent, child: ids of the node before it and of the node or head after it.
        place: stage and number of the node after it; of a head the number of stages and that of its task.
        source, target: the tasks between whose features it maps.
        rank: the largest of its maps.
        r2: share of the expected features' variance that least squares explains, see `Stitch`.
        method: how it was fitted.
        folded: whether the layers next to it have taken it in.
        params: parameters.
        flops: multiply-adds of one forward pass.
    """

    parent: str
    child: str
    place: tuple[int, int]
    source: str
    target: str
    rank: int
    r2: float
    method: str
    folded: bool
    params: int
    flops: int


def stitch_shapes(branched: BranchedNetwork, example: Input) -> dict[Edge, dict[int, tuple[int, ...]]]:
    """Find the shapes of the tensors that stitches map, on one forward pass in evaluation mode.

    Args:
        branched: the network.
        example: inputs.

    Returns:
        for each stitch, by the ids of the node before and after it, the shape by the tensor's number in the cut.
    """
    shapes: dict[Edge, dict[int, tuple[int, ...]]] = {}
    handles = []
    for edge, stitch in branched.stitches.items():
        # Bound as a default: a closure would see the last edge only.
        def keep(module: nn.Module, cut: Any, edge: Edge = edge) -> None:
            shapes[edge] = {index: tuple(cut[index].shape) for index in branched.stitches[edge].affine_maps}

        handles.append(stitch.register_forward_pre_hook(keep))
    try:
        if handles:
            with torch.no_grad(), evaluation_mode(branched):
                branched(example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def stitch_costs(branched: BranchedNetwork, example: Input) -> tuple[StitchCost, ...]:
    """Count the parameters and multiply-adds of every stitch.

    A map takes as many multiply-adds at each position as its matrices have entries.

    Args:
        branched: the network.
        example: inputs; its batch size counts.

    Returns:
        one entry for each stitch, from input to output.
    """
    shapes = stitch_shapes(branched, example)
    costs = []
    for (parent, child), stitch in branched.stitches.items():
        flops = 0
        for index, affine in stitch.affine_maps.items():
            shape = shapes[parent, child][index]
            positions = prod(shape) // shape[affine.dimension]
            flops += positions * sum(weight.numel() for weight in affine.weights)
        found = (stitch.source, stitch.target, stitch.rank, stitch.r2, stitch.method, stitch.folded, stitch.size)
        node = branched.member(child)
        costs.append(StitchCost(parent, child, (node.stage, node.index), *found, flops))
    return tuple(costs)
