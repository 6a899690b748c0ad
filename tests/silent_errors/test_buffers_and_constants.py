"""What a network computes from buffers and constants alone, and what it writes while it is split."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from tests.silent_errors.toys import WIDTH, FourLayers, X, made, separate, shared

pytestmark = pytest.mark.slow


class FourierFeatures(FourLayers):
    """Random directions in a persistent buffer, of which only the transpose is used."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(F.relu(self.l3(F.relu(self.l2(torch.sin(self.l1(x) @ self.directions.T))))))


def test_a_buffer_is_loaded_with_the_weights(tmp_path: Path) -> None:
    networks = {task: made(FourierFeatures, seed).eval() for seed, task in enumerate("ab")}
    branched = separate(networks, X).eval()
    branchnet.save(branched, tmp_path)
    others = {task: made(FourierFeatures, 90 + seed) for seed, task in enumerate("ab")}
    loaded = branchnet.load(tmp_path, networks=others)
    for task, network in networks.items():
        assert torch.equal(branched(X)[task], network(X))
        assert torch.equal(loaded(X)[task], network(X))
    staged = branchnet.split(networks["a"], X)
    staged.load_original_state_dict(networks["b"].state_dict())
    assert torch.equal(staged(X), networks["b"](X))


class Centre(FourLayers):
    """A running centre, written in training and read through `[None]`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.l2(F.relu(self.l1(x)))
        if self.training:
            self.centre.copy_(0.5 * self.centre + 0.5 * h.detach().mean(0))
        return self.l4(self.l3(h - self.centre[None]))


class MovingAverage(FourLayers):
    """A moving average and a counter, updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(WIDTH))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.l2(F.relu(self.l1(x)))
        if self.training:
            self.count += 1
            self.mean.mul_(0.5).add_(0.5 * h.detach().mean(0))
        return self.l4(self.l3(h - self.mean))


@pytest.mark.parametrize("make", [Centre, MovingAverage])
def test_updates_in_training_are_neither_lost_nor_read_too_early(make: type[FourLayers]) -> None:
    network = made(make)
    before = copy.deepcopy(network.state_dict())
    staged = branchnet.split(copy.deepcopy(network), X)
    network.train(), staged.train()
    for _ in range(10):
        assert torch.equal(network(X), staged(X))
    held = staged.original_state_dict()
    for name, buffer in network.named_buffers():
        assert torch.equal(held[name], buffer) and not torch.equal(buffer, before[name])
    network.eval(), staged.eval()
    assert torch.equal(network(X), staged(X))


class Renormalised(FourLayers):
    """Its weight is brought to unit rows before each use."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.l2.weight.div_(self.l2.weight.norm(dim=1, keepdim=True))
        return self.l4(self.l3(self.l2(F.relu(self.l1(x)))))


class Counting(FourLayers):
    """Counts its calls in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.l4(self.l3(self.l2(F.relu(self.l1(x)))))


@pytest.mark.parametrize("make", [Renormalised, Counting, MovingAverage])
def test_splitting_changes_nothing_in_the_network_that_was_given(make: type[FourLayers]) -> None:
    network = made(make)
    before = copy.deepcopy(network.state_dict())
    branchnet.split(network, X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class ShiftedByAConstant(FourLayers):
    """Subtracts numbers that its code makes at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))


class ScaledByARange(FourLayers):
    """Multiplies by `torch.arange`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(F.relu(self.l3(F.relu(self.l2(F.relu(self.l1(x)) * torch.arange(WIDTH))))))


@pytest.mark.parametrize("make", [ShiftedByAConstant, ScaledByARange])
@pytest.mark.parametrize("init", ["donor", "mean", "merge"])
def test_constants_made_in_forward_are_equal_by_value(make: type[FourLayers], init: str) -> None:
    network: nn.Module = made(make).eval()
    branched = shared({"a": network, "b": copy.deepcopy(network)}, X, init=init, probe=torch.randn(32, WIDTH)).eval()
    for output in branched(X).values():
        torch.testing.assert_close(output, network(X))
