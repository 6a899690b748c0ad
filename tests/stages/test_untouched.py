"""The given network is bit-exact as before, whatever its forward does, also where splitting fails."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages import candidate_locations, count_flops, split, split_all
from tests.stages.checks import assert_untouched, everything

ROWS = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))


class Restless(nn.Module):
    """Writes to itself in every way, and draws random numbers; `how` decides by which method it can be traced."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.l1, self.l2, self.l3, self.l4 = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(8))
        self.plain = torch.zeros(8)
        self.calls = 0
        self.history: list[Any] = []
        self.cache: Any = None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.l2.weight.div_(self.l2.weight.norm(dim=1, keepdim=True))
            self.l3.weight.data.mul_(0.9)
        self.calls += 1
        self.history.append(x)
        self.plain += 1
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        x = self.l2(torch.relu(self.norm(self.l1(x))))
        self.count += 1
        self.last = x.detach().mean(0)
        self.cache = x
        if self.how == "export":
            x = torch.stack([*x])
        if self.how == "chain":
            x = x + torch.from_numpy(np.zeros(8, dtype=np.float32)[: len(x.detach().numpy()[0])])
        if self.how == "refused" and x.sum() > 0:
            x = -x
        return self.l4(self.l3(x))


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "split": lambda network: split(network, ROWS),
    "split_all": lambda network: split_all({"a": network, "b": network}, ROWS),
    "candidate_locations": lambda network: candidate_locations(network, ROWS),
    "count_flops": lambda network: count_flops(network, (ROWS,)),
    "failing example": lambda network: split(network, ROWS[:, :5]),
    "failing locations": lambda network: split(network, ROWS, locations=["nowhere"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["fx", "export", "chain", "refused"])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_as_before(call: str, how: str, training: bool) -> None:
    network = Restless(how).train(training)
    network.norm.eval()
    network.l1.register_forward_hook(lambda module, args, output: output * 1)
    before = everything(network)
    plain, history = network.plain.clone(), copy.copy(network.history)
    succeeds = "failing" not in call and (how == "fx" or call == "count_flops")
    with nullcontext() if succeeds else suppress(SplitError):
        CALLS[call](network)
    assert_untouched(before, everything(network))
    assert torch.equal(network.plain, plain)
    assert network.history == history
    assert network.cache is None


def test_a_graph_that_is_being_differentiated_stays_valid() -> None:
    network = Restless("fx").eval()
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    result = layer(ROWS)
    split(layer, ROWS)
    result.sum().backward()
    assert network.l1.weight.grad is None
    assert layer[0].weight.grad is not None
