"""Small networks and how they are compared, for the reports on silent errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import SplitError
from tests.stages.checks import assert_evaluates_alike, assert_trains_alike

WIDTH = 8
X = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))


class FourLayers(nn.Module):
    """Four linear layers, which subclasses call."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3, self.l4 = (*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(F.relu(self.l3(F.relu(self.l2(F.relu(self.l1(x)))))))


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def separate(networks: Mapping[str, nn.Module], example: Tensor) -> BranchedNetwork:
    """The branched network that shares nothing: it is to give what the networks give."""
    staged = branchnet.split_all(networks, example)
    depth = len(next(iter(staged.values())).stages)
    return branchnet.build(Tree.separate(list(networks), depth), staged)


def shared(networks: Mapping[str, nn.Module], example: Tensor, **settings: Any) -> BranchedNetwork:
    """The branched network that shares all its stages."""
    staged = branchnet.split_all(networks, example)
    depth = len(next(iter(staged.values())).stages)
    return branchnet.build(Tree.shared(list(networks), depth), staged, **{"init": "donor", **settings})


def assert_itself_or_evaluation_only(network: nn.Module, example: Tensor, reason: str) -> None:
    """Stages evaluate as the network does, and train as it does or say why they can only be evaluated."""
    staged = branchnet.split(copy.deepcopy(network), example)
    assert_evaluates_alike(network, staged, example)
    if staged.trainable:
        assert_trains_alike(network, staged, example)
        return
    assert re.search(reason, str(staged.eval_only)), staged.eval_only
    with pytest.raises(SplitError, match=reason):
        staged.train()
