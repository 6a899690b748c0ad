"""Small stitched networks on images, tokens and vectors, with stitches in front of nodes and heads."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree

TASKS = ("a", "b", "c")
TREE = Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]])
STITCHED = [("nodes.0.0", "nodes.1.1"), ("nodes.1.0", "heads.1")]
"""The edges of `TREE` where the donor changes: node a to node c, node a to head b."""


def conv_network(width: int = 4) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 2)),
    )


def linear_network(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


KINDS = {
    "images": (conv_network, (3, 8, 8)),
    "tokens": (linear_network, (7, 6)),
    "vectors": (linear_network, (6,)),
}


def inputs(kind: str, count: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, *KINDS[kind][1], generator=torch.Generator().manual_seed(seed))
    if kind == "images":  # smooth ones: a probe of noise is warned of
        drawn = nn.functional.interpolate(drawn[..., :3, :3], size=drawn.shape[2:], mode="bicubic", align_corners=True)
    return drawn


@functools.cache
def networks(kind: str) -> dict[str, StagedNetwork]:
    made = {}
    with torch.random.fork_rng(devices=[]):
        for seed, task in enumerate(TASKS):
            torch.manual_seed(seed)
            made[task] = KINDS[kind][0]().eval()
    return branchnet.split_all(made, inputs(kind, 2), locations=["1", "3"])


def stitched(kind: str, tree: Tree = TREE) -> BranchedNetwork:
    return branchnet.build(tree, networks(kind), init="stitch", probe=inputs(kind, 64)).eval()


def outputs_by_hand(branched: BranchedNetwork, x: Tensor) -> dict[str, Tensor]:
    """What `branched` of `TREE` computes, its modules composed one after another, maps as plain matrix products."""
    trunk = branched.nodes[0][0](x)
    first, third = branched.nodes[1][0](*trunk), branched.nodes[1][1].stage(*mapped(branched.nodes[1][1], trunk))
    return {
        "a": branched.heads[0](*first),
        "b": branched.heads[1].stage(*mapped(branched.heads[1], first)),
        "c": branched.heads[2](*third),
    }


def mapped(member: nn.Module, cut: tuple[Tensor, ...]) -> list[Tensor]:
    """A cut through the stitch of a node or head, by einsum over the channels."""
    values = list(cut)
    for index, affine in member.stitch.maps.items():
        rows = values[int(index)].movedim(affine.dimension, -1)
        for weight in affine.weights:
            rows = torch.einsum("...c,dc->...d", rows, weight)
        values[int(index)] = (rows + affine.bias).movedim(-1, affine.dimension)
    return values
