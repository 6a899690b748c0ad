"""Losses with parameters, against the same training written as a plain PyTorch loop."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import TrainingError
from branchnet.training.optimization.batch_order import sample_indices

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
LABELS = {"a": X @ torch.ones(5, 1), "b": 10 * X[:, :2]}


class Uncertainty(nn.Module):
    """Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", equation 10."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) * torch.exp(-self.log_variance) + self.log_variance

    def scaled(self, output: Tensor, target: Tensor, *, factor: float = 1.0) -> Tensor:
        return self(factor * output, factor * target)  # type: ignore[no-any-return]


def linear(outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs))


def branched() -> BranchedNetwork:
    networks = {"a": linear(1, 0), "b": linear(2, 1)}
    return branchnet.build(Tree.shared(["a", "b"], 1), networks, example=X[:2], locations=["1"], init="donor")


def by_hand(network: BranchedNetwork, losses: dict[str, Uncertainty], steps: int, rate: float) -> None:
    """AdamW without decay of the variances, over one permutation of the samples after the other."""
    own = [loss.log_variance for loss in losses.values()]
    optimizer = torch.optim.AdamW(
        [{"params": list(network.parameters()), "weight_decay": 1e-4}, {"params": own, "weight_decay": 0.0}]
    )
    network.train()
    for step in range(steps):
        share = 1.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (steps - 1)))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        index = sample_indices(step, 32, 8, 3)
        outputs = network(X[index])
        optimizer.zero_grad()
        sum(losses[task](outputs[task], LABELS[task][index]) for task in losses).backward()
        nn.utils.clip_grad_norm_([*network.parameters(), *own], 5.0)
        optimizer.step()


def test_their_parameters_are_trained_as_a_plain_loop_trains_them() -> None:
    network, losses = branched(), {task: Uncertainty() for task in LABELS}
    other, other_losses = copy.deepcopy((network, losses))
    branchnet.fit(network, (X, LABELS), losses, steps=10, batch_size=8, learning_rate=1e-2, seed=3, progress=False)
    by_hand(other, other_losses, 10, 1e-2)
    for task, loss in losses.items():
        assert abs(loss.log_variance.item()) > 0.01
        torch.testing.assert_close(loss.log_variance, other_losses[task].log_variance, rtol=1e-5, atol=1e-7)
    for one, expected in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: loss.scaled, lambda loss: partial(loss.scaled)])
def test_methods_and_partials_of_a_module_are_trained_alike(
    given: Callable[[Uncertainty], Callable[..., Tensor]],
) -> None:
    loss, network = Uncertainty(), linear(1, 0)
    branchnet.fit(network, (X, LABELS["a"]), given(loss), steps=5, batch_size=8, progress=False)
    assert loss.log_variance.item() != 0


def test_a_rate_by_node_gives_a_loss_that_of_its_tasks_head() -> None:
    losses = {task: Uncertainty() for task in LABELS}
    branchnet.fit(
        branched(), (X, LABELS), losses, steps=3, batch_size=8, progress=False,
        learning_rate=lambda node: 0.1 if node.is_head and node.tasks == ("b",) else 0.0,
    )  # fmt: skip
    assert losses["a"].log_variance.item() == 0 and abs(losses["b"].log_variance.item()) > 0.01


def test_one_loss_of_several_tasks_and_frozen_parameters() -> None:
    shared, frozen = Uncertainty(), Uncertainty().requires_grad_(False)
    branchnet.fit(branched(), (X, LABELS), dict.fromkeys(LABELS, shared), steps=2, batch_size=8, progress=False)
    assert shared.log_variance.item() != 0
    branchnet.fit(branched(), (X, LABELS), dict.fromkeys(LABELS, frozen), steps=2, batch_size=8, progress=False)
    assert frozen.log_variance.item() == 0


def test_a_parameter_that_nothing_trains_is_refused() -> None:
    hidden = nn.Parameter(torch.zeros(3, 1))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + hidden.sum()

    with pytest.raises(TrainingError, match=r"loss of 'b' depends on a parameter of shape \(3, 1\) that would not"):
        branchnet.fit(branched(), (X, LABELS), {"a": F.mse_loss, "b": loss}, steps=1, batch_size=8, progress=False)
    hidden.requires_grad_(False)
    branchnet.fit(branched(), (X, LABELS), {"a": F.mse_loss, "b": loss}, steps=1, batch_size=8, progress=False)


def test_parameters_of_a_loss_on_another_device_are_refused() -> None:
    loss = Uncertainty().to("meta")
    with pytest.raises(TrainingError, match="loss of 'loss' has parameters on meta; expected cpu"):
        branchnet.fit(linear(1, 0), (X, LABELS["a"]), loss, steps=1, progress=False)


class Stops(Uncertainty):
    """Interrupted at its fourth call, as by Ctrl-C."""

    def __init__(self, *, stops: bool = False) -> None:
        super().__init__()
        self._calls, self._stops = 0, stops

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self._calls += 1
        if self._stops and self._calls == 4:
            signal.raise_signal(signal.SIGINT)
        return super().forward(output, target)


def test_an_interrupted_run_goes_on_with_the_losses_parameters(tmp_path: Path) -> None:
    def train(loss: Stops, checkpoint: Path | None) -> nn.Module:
        network = linear(1, 0)
        branchnet.fit(
            network, (X, LABELS["a"]), loss, steps=9, batch_size=8, learning_rate=0.1, seed=1, checkpoint=checkpoint,
            keep="last", progress=False,
        )  # fmt: skip
        return network

    whole, stopped, resumed = Stops(), Stops(stops=True), Stops()
    expected = train(whole, None)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "run.pt")
    found = train(resumed, tmp_path / "run.pt")
    assert torch.equal(resumed.log_variance, whole.log_variance) and resumed._calls == 5
    assert all(map(torch.equal, found.parameters(), expected.parameters()))
