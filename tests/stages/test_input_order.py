"""Which networks are given images channels last, and that the trial leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from branchnet.stages.tracing.input_order import InputOrder, takes_channels_last
from tests.stages.checks import assert_untouched, everything

CPU = torch.device("cpu")
X = torch.rand(4, 3, 8, 8)


class Careless(nn.Module):
    """Calls `view` on what a convolution returned: always, in one mode alone, or in its backward pass; or never."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.calls = 0
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = nn.functional.dropout(self.norm(self.first(x)), 0.1, self.training)
        if self.when in ("always", "training" if self.training else "evaluation"):
            return self.last(x.view(len(x), -1))
        return self.last(_Viewing.apply(x).flatten(1) if self.when == "backward" else x.flatten(1))


class _Viewing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.contiguous(memory_format=torch.channels_last).view(-1).view_as(gradient)


def laid_out(order: InputOrder, inputs: Any = X) -> bool:
    return order.placed(inputs, CPU).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("when", "training", "evaluation", "without_gradients"),
    [
        ("never", True, True, True),
        ("always", False, False, False),
        ("training", False, True, True),
        ("evaluation", True, False, False),
        ("backward", False, False, True),
    ],
)
def test_each_mode_is_tried(when: str, training: bool, evaluation: bool, without_gradients: bool) -> None:
    network = Careless(when)
    order = InputOrder(network)
    assert laid_out(order) == training
    network.eval()
    assert laid_out(order) == evaluation
    with torch.no_grad():
        assert laid_out(order) == without_gradients


def test_a_trial_changes_nothing() -> None:
    network = Careless("never")
    fired: list[Tensor] = []
    network.first.weight.register_hook(fired.append)
    network.last.weight.grad = torch.ones_like(network.last.weight)
    before, calls, state = everything(network), network.calls, torch.get_rng_state()
    inputs = X.clone()
    assert laid_out(InputOrder(network), inputs)
    assert_untouched(before, everything(network))
    assert network.calls == calls and not fired and network.first.weight.grad is None
    assert torch.equal(network.last.weight.grad, torch.ones_like(network.last.weight))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(inputs, X) and inputs.is_contiguous()


def test_one_trial_decides_for_all_batches_of_one_form() -> None:
    runs: list[tuple[int, ...]] = []

    def run(network: nn.Module, x: Tensor) -> Tensor:
        runs.append(tuple(x.shape))
        return network(x)

    order = InputOrder(Careless("never"), run)
    assert all(laid_out(order, x) for x in (X, X[:3], X))
    assert runs == [(2, 3, 8, 8)]
    order.placed(torch.rand(4, 5), CPU), order.placed(X.contiguous(memory_format=torch.channels_last), CPU)
    assert len(runs) == 1


def test_orders_of_single_samples_say_nothing_of_others() -> None:
    class Rows(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(-1, 36)

    network = Rows(nn.Conv2d(3, 6, 3)).eval()
    order = InputOrder(network)
    for x in (X[:1], X):
        torch.testing.assert_close(network(order.placed(x, CPU)), network(x))


def test_networks_that_cannot_be_copied_get_the_usual_order() -> None:
    class Alone(nn.Conv2d):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("only one of me")

    assert not laid_out(InputOrder(Alone(3, 6, 3)))


@pytest.mark.parametrize(("channels", "stride", "taken"), [(4, 2, False), (7, 3, False), (4, 1, True), (8, 2, True)])
def test_convolutions_that_break_memory_backward_are_not_given_channels_last(
    channels: int, stride: int, taken: bool
) -> None:
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 1, stride=stride))
    images = torch.randn(2, 3, 16, 16)
    assert takes_channels_last(network, images) is taken
    with torch.no_grad():  # the forward pass is right
        assert takes_channels_last(network, images)
