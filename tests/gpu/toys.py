"""Small networks that compile fast: convolutions with BatchNorm, a sum, heads of two kinds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree

TASKS = ("depth", "edges", "scene", "count")
LOCATIONS = ["stem", "middle", "deep"]
TREE = Tree(TASKS, [[TASKS], [("depth", "edges"), ("scene", "count")], [("depth",), ("edges",), ("scene", "count")]])


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.convolution(x)))


class Network(nn.Module):
    """Three stages and a head, for each pixel (`depth`, `edges`) or for the image."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = Block(8)
        self.deep = Block(8)
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        self.head: nn.Module = nn.Conv2d(8, 2, 1) if dense else pooled

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.deep(self.middle(self.stem(x))))
        return output


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def networks() -> dict[str, nn.Module]:
    """One for each task, with random weights and BatchNorm statistics of its own, in evaluation mode, on the CPU."""
    made: dict[str, nn.Module] = {}
    for number, task in enumerate(TASKS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            network = Network(dense=task in ("depth", "edges"))
            with torch.no_grad():
                for seed in range(8):
                    network.train()(images(8, seed=100 * number + seed))
        made[task] = network.eval()
    return made


def staged(made: Mapping[str, nn.Module]) -> dict[str, StagedNetwork]:
    return branchnet.split_all(made, images(), locations=LOCATIONS)


def branched(tree: Tree = TREE) -> BranchedNetwork:
    return branchnet.build(tree, staged(networks()), init="donor").eval()


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-3) -> None:
    """Within `tolerance` of the largest value of each output, whatever the device and the type."""
    assert list(found) == list(expected)
    for task, value in expected.items():
        wanted = value.double().cpu()
        difference = (found[task].double().cpu() - wanted).abs().max()
        assert difference <= tolerance * wanted.abs().max(), f"{task}: {difference} of {wanted.abs().max()}"
