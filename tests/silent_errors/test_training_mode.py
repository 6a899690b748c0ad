"""What happens in training alone: gradients that are changed or switched off, randomness, aliases, state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet.errors import SplitError
from tests.silent_errors.toys import WIDTH, FourLayers, X, assert_itself_or_evaluation_only, made

pytestmark = pytest.mark.slow


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Reversed(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(_Reverse.apply(self.l2(F.relu(self.l1(x))))))


class Signs(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(_StraightThrough.apply(self.l2(F.relu(self.l1(x))))))


class WithoutGradient(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.l2(F.relu(self.l1(x)))
        return self.l4(F.relu(self.l3(h)))


class BackwardHookOnABlock(FourLayers):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.block.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 0.1,))

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(self.block(self.l1(x))))


class HookOnATensor(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.l2(F.relu(self.l1(x)))
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 0.1)
        return self.l4(self.l3(h))


GRADIENTS = [Reversed, Signs, WithoutGradient, BackwardHookOnABlock, HookOnATensor]


@pytest.mark.parametrize("make", GRADIENTS)
def test_gradients_are_the_networks(make: type[FourLayers]) -> None:
    assert_itself_or_evaluation_only(made(make), X, "gradient of l1.weight")


class AutocastInTraining(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.l1(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            h = self.l2(F.relu(h))
        return self.l4(self.l3(h.float()))


class HookOnTheNetwork(FourLayers):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, inputs, output: output * 2 if module.training else output)


class WrittenThroughAnAlias(FourLayers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.l1(x)
        if self.training:
            view = h[:, :4]
            view *= 2
        return self.l4(self.l3(F.relu(self.l2(h))))


class FrozenByTrain(FourLayers):
    """Keeps its BatchNorm in evaluation mode by a `train` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(WIDTH)

    def train(self, mode: bool = True) -> FrozenByTrain:
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(F.relu(self.bn(self.l2(F.relu(self.l1(x)))))))


class FrozenByForward(FourLayers):
    """Puts its BatchNorm into evaluation mode at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.bn.eval()
        return self.l4(self.l3(F.relu(self.bn(self.l2(F.relu(self.l1(x)))))))


OUTPUTS = [AutocastInTraining, HookOnTheNetwork, WrittenThroughAnAlias, FrozenByTrain, FrozenByForward]


@pytest.mark.parametrize("make", OUTPUTS)
def test_outputs_in_training_are_the_networks(make: type[FourLayers]) -> None:
    assert_itself_or_evaluation_only(made(make), X, "outputs of the first call|hook")


def _noisy(draw: Callable[[], Any]) -> type[FourLayers]:
    class Noisy(FourLayers):
        def forward(self, x: Tensor) -> Tensor:
            h = self.l2(F.relu(self.l1(x)))
            if self.training:
                h = h * draw()
            return self.l4(self.l3(h))

    return Noisy


DRAWS: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: torch.randn(WIDTH),
    "in place": lambda: torch.empty(1).uniform_(0.5, 1.5),
    "NumPy": lambda: float(np.random.uniform(0.5, 1.5)),  # noqa: NPY002
}


@pytest.mark.parametrize("kind", DRAWS)
def test_random_numbers_are_drawn_at_every_pass(kind: str) -> None:
    network = made(_noisy(DRAWS[kind]))
    staged = branchnet.split(copy.deepcopy(network), X)
    assert torch.equal(network.eval()(X), staged.eval()(X))
    if not staged.trainable:
        assert "random numbers" in str(staged.eval_only)
        with pytest.raises(SplitError, match="random numbers"):
            staged.train()
        return
    network.train(), staged.train()
    assert not torch.equal(staged(X), staged(X))


class PreviousOutput(FourLayers):
    """Subtracts what it computed at the call before."""

    previous: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.l2(F.relu(self.l1(x)))
        out = h if self.previous is None else h - self.previous
        self.previous = h.detach()
        return self.l4(self.l3(out))


class HiddenState(nn.Module):
    """An LSTM whose hidden state lives in an attribute, as in truncated backpropagation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(20, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.middle, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.hidden: Any = None

    def forward(self, tokens: Tensor) -> Tensor:
        h, hidden = self.lstm(self.embedding(tokens), self.hidden)
        self.hidden = tuple(value.detach() for value in hidden)
        return self.out(F.relu(self.middle(h.mean(1))))


@pytest.mark.parametrize(
    ("make", "example"), [(PreviousOutput, X), (HiddenState, torch.arange(20).reshape(4, 5))], ids=["tensor", "lstm"]
)
def test_state_in_attributes_is_kept_or_refused(make: Callable[[], nn.Module], example: Tensor) -> None:
    network = made(make).eval()
    try:
        staged = branchnet.split(copy.deepcopy(network), example).eval()
    except SplitError as error:
        assert "second call" in str(error) and "buffers" in str(error)
        return
    for _ in range(3):
        assert torch.equal(network(example), staged(example))


class Annealed(FourLayers):
    """Its temperature falls at each call in training."""

    temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature *= 0.5
        return self.l4(self.l3(F.relu(self.l2(self.l1(x))) * self.temperature))


def test_a_number_that_changes_in_training_is_kept_or_training_is_refused() -> None:
    network = made(Annealed)
    staged = branchnet.split(copy.deepcopy(network), X)
    assert torch.equal(network.eval()(X), staged.eval()(X))
    if not staged.trainable:
        assert "second call" in str(staged.eval_only)
        return
    network.train(), staged.train()
    for _ in range(3):
        assert torch.equal(network(X), staged(X))
