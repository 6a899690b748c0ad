"""Small networks for the builder's tests: with BatchNorm and heads of different kinds, linear, tied, unruly."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree

LOCATIONS = ["stem", "layer1", "layer2", "layer3", "layer4"]
LETTERS = tuple("abcd")
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


@functools.cache
def _split_once(tasks: tuple[str, ...]) -> dict[str, StagedNetwork]:
    return staged(networks(tasks))


def split_networks(tasks: tuple[str, ...] = tuple(KINDS)) -> dict[str, StagedNetwork]:
    """The networks, split: copies, as to split takes far longer than to copy."""
    return copy.deepcopy(_split_once(tasks))


def linear_tree() -> BranchedNetwork:
    """Four tasks on three linear layers: the first stage is shared by all, the second by pairs."""

    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).eval()

    cut = branchnet.split_all({t: network(i) for i, t in enumerate(LETTERS)}, torch.rand(3, 6), locations=["1", "3"])
    return branchnet.build(Tree(LETTERS, [[LETTERS], [("a", "b"), ("c", "d")]]), cut, init="donor")


class TiedStages(nn.Module):
    """Two stages that share one linear layer, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.second[0].weight = self.first[0].weight
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Two stages; the second input joins after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.first(left) + right)))  # type: ignore[no-any-return]


class Unruly(nn.Module):
    """Works eagerly and breaks every graph."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * x
