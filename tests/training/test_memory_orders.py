"""Networks that call `view` on what a convolution returned, which images channels last would make fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.pipeline.problem import donor_outputs
from branchnet.training import rmse

pytestmark = pytest.mark.filterwarnings("ignore:the probe", "ignore:.*images are", "ignore:.*held-out")

X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = X.mean((1, 2, 3)).unsqueeze(1)


class Viewing(nn.Module):
    """`view` after a convolution: always, or in training mode alone."""

    def __init__(self, seed: int, *, always: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.always = always
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.last = nn.Linear(4 * 4 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.last(x.view(-1, 64) if self.always or self.training else x.reshape(-1, 64))


def networks(**options: Any) -> dict[str, nn.Module]:
    return {task: Viewing(seed, **options).eval() for seed, task in enumerate("ab")}


def branched(given: dict[str, nn.Module]) -> branchnet.BranchedNetwork:
    return branchnet.build(
        branchnet.Tree.shared(["a", "b"], 1), given, example=X[:2], locations=["first"], init="donor"
    )


def refuses_channels_last(network: nn.Module) -> bool:
    try:
        network(X.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        return "view size is not compatible" in str(error)
    return False


def test_outputs_of_donors_and_metrics_are_those_of_plain_pytorch() -> None:
    given = networks()
    network = branched(given).eval()
    with torch.no_grad():
        assert all(map(refuses_channels_last, [*given.values(), network]))
        outputs = {task: one(X) for task, one in given.items()}
        found = network(X)
    assert all(torch.equal(donor_outputs(given, X, 40)[task], outputs[task]) for task in "ab")
    scores = branchnet.evaluate(network, X, outputs, {task: rmse() for task in "ab"})
    for task in "ab":
        error = float((found[task] - outputs[task]).square().mean().sqrt())
        assert scores[task] == pytest.approx(error, rel=1e-5, abs=1e-7)


def descended(network: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int) -> dict[str, Tensor]:
    """Plain gradient descent on all samples."""
    trained = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(trained.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(trained).backward()
        optimizer.step()
    return dict(trained.named_parameters())


SETTINGS: dict[str, Any] = {
    "steps": 3,
    "batch_size": len(X),
    "learning_rate": 0.05,
    "optimizer": torch.optim.SGD,
    "schedule": "constant",
    "keep": "last",
    "clip": None,
    "progress": False,
}


@pytest.mark.parametrize("always", [True, False])
def test_fitting_is_plain_gradient_descent(always: bool) -> None:
    network = Viewing(0, always=always)
    wanted = descended(network, lambda one: nn.functional.mse_loss(one(X), Y), 3)
    branchnet.fit(network, (X, Y), nn.functional.mse_loss, **SETTINGS)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("always", [True, False])
def test_distilling_is_plain_gradient_descent(always: bool) -> None:
    given = networks(always=always)
    network = branched({task: Viewing(seed, always=always) for seed, task in enumerate("ab", 5)})
    with torch.no_grad():
        outputs = {task: one(X) for task, one in given.items()}

    def loss(one: nn.Module) -> Tensor:
        found = one(X)
        parts = [(found[task] - outputs[task]).square().mean() / outputs[task].var(correction=0) for task in "ab"]
        return torch.stack(parts).sum()

    wanted = descended(network, loss, 3)
    branchnet.distill(network, given, X, scope="all", **SETTINGS)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-3, atol=1e-5)


def test_a_whole_run() -> None:
    given = networks()
    result = branchnet.run(
        given, X, "90% params", locations=["first"], steps=2, stitch_steps=2, random_trees=1, compiled=False, quiet=True
    )
    with torch.no_grad():
        assert set(result.network(X)) == {"a", "b"}


def test_plain_networks_are_trained_and_run_channels_last() -> None:
    orders: list[bool] = []

    class Spied(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            orders.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    torch.manual_seed(0)
    network = nn.Sequential(Spied(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 1))
    donor_outputs({"a": network, "b": network}, X, 8)
    branchnet.fit(network, (X, Y), nn.functional.mse_loss, steps=3, batch_size=8, learning_rate=1e-3, progress=False)
    separate = branchnet.SeparateNetworks({"a": network})
    branchnet.evaluate(separate, X, {"a": Y}, {"a": rmse()})
    branchnet.Teachers({"a": network}, X, progress=False)
    assert len(orders) > 10 and all(orders)
