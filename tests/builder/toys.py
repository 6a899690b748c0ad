"""Small networks with BatchNorm and heads of different kinds, for the builder's tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import branchnet
from branchnet import StagedNetwork

LOCATIONS = ["stem", "layer1", "layer2", "layer3", "layer4"]
KINDS = {"depth": ("dense", 1), "edges": ("dense", 2), "scene": ("image", 5), "count": ("image", 1)}


def images(count: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def networks(tasks: tuple[str, ...] = tuple(KINDS)) -> dict[str, nn.Module]:
    """Networks with random weights and BatchNorm statistics of their own."""
    made = {}
    for number, task in enumerate(tasks):
        kind, outputs = KINDS[task]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            network = branchnet.create("branchnet:scene_network", outputs=outputs, kind=kind, width=4)
            network.train()(images(8, seed=number))
        made[task] = network.eval()
    return made


def staged(made: dict[str, nn.Module]) -> dict[str, StagedNetwork]:
    return branchnet.split_all(made, images(), locations=LOCATIONS)
