"""What differs only in training, at a second call or in gradients is found: each network is its own judge."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages import StagedNetwork, split
from tests.stages.checks import assert_evaluates_alike, assert_same, assert_trains_alike, run

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


class Reversed(torch.autograd.Function):
    """Gradient reversal (Ganin and Lempitsky, 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


class Straight(torch.autograd.Function):
    """Signs with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Layers(nn.Module):
    """Four layers, between which one thing is done."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.l1, self.l2, self.l3, self.l4 = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.between = between
        self.kept: Any = None
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(torch.relu(self.l3(self.between(self, torch.relu(self.l2(torch.relu(self.l1(x))))))))


def without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(x)


def switched_off(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    x = torch.tanh(x)
    torch.set_grad_enabled(True)
    return x


def autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
        return (x @ x.T @ x).float()


def hooked(self: Any, x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * 0.1)
    return x


def aliased(self: Any, x: Tensor) -> Tensor:
    x = x * 1
    if self.training:
        view = x[:, :4]
        view *= 2
    return x


def frozen_inside(self: Any, x: Tensor) -> Tensor:
    self.norm.eval()
    return self.norm(x)


def noise(self: Any, x: Tensor) -> Tensor:
    return x + torch.randn(8) if self.training else x


def made_noise(self: Any, x: Tensor) -> Tensor:
    return x * torch.empty(1).uniform_(0.5, 1.5) if self.training else x


def numpy_noise(self: Any, x: Tensor) -> Tensor:
    return x * float(np.random.uniform(0.5, 1.5)) if self.training else x  # noqa: NPY002


def skipped_by_python(self: Any, x: Tensor) -> Tensor:
    return self.drop(x) if self.training and random.random() < 0.5 else self.drop(x) * 2


def skipped_by_torch(self: Any, x: Tensor) -> Tensor:
    return x if self.training and torch.rand(()).item() < 0.01 else self.l2(x)


def annealed(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.scale *= 0.5
    return x * self.scale


LOST = [
    *(without_gradient, switched_off, autocast, hooked, aliased, frozen_inside, noise, annealed),
    *(made_noise, numpy_noise, skipped_by_python, skipped_by_torch),
    lambda self, x: Reversed.apply(x),
    lambda self, x: Straight.apply(x),
]


def named(function: Callable[..., Any]) -> str:
    return function.__name__


def same_in_training(network: nn.Module, staged: StagedNetwork) -> None:
    """Three calls give the same outputs from one random state; the first one's gradients are equal."""
    network, staged = copy.deepcopy(network).train(), copy.deepcopy(staged).train()
    assert_trains_alike(network, staged, ROWS, 1e-6)
    for seed in range(3):
        random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        wanted = run(network, ROWS, seed)
        random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        assert_same(wanted, run(staged, ROWS, seed), 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_that_python_draws_is_found_whichever_was_taken(seed: int) -> None:
    random.seed(seed)
    assert not split(Layers(skipped_by_python), ROWS).trainable


@pytest.mark.parametrize("between", LOST, ids=named)
def test_training_is_the_networks_or_refused(between: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Layers(between)
    network.drop.p = 0.0 if between is not skipped_by_python else 0.5
    staged = split(network, ROWS, locations=["l1", "l2"])
    assert_evaluates_alike(network, staged, ROWS, 1e-6)
    if staged.trainable:
        same_in_training(network, staged)
    else:
        assert staged.eval_only
        with pytest.raises(SplitError, match="in training mode"):
            staged.train()


KEPT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda self, x: self.drop(x),
    "noise like it": lambda self, x: x + torch.randn_like(x) if self.training else x,
    "drawn of a shape": lambda self, x: nn.functional.dropout(x, 0.3, self.training),
    "normalised": lambda self, x: self.norm(x),
    "detached": lambda self, x: x - x.detach().mean(0),
}


@pytest.mark.parametrize("kind", KEPT)
def test_ordinary_randomness_and_statistics_stay_trainable(kind: str) -> None:
    network = Layers(KEPT[kind])
    staged = split(network, ROWS, locations=["l1", "l2"])
    assert staged.trainable
    same_in_training(network, staged)


class Frozen(Layers):
    """Keeps its normalisation in evaluation mode, as detectors do."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self


def test_frozen_normalisation_stays_frozen() -> None:
    network = Frozen(lambda self, x: self.norm(x))
    with torch.no_grad():
        network.norm.running_mean.add_(1.0)  # type: ignore[union-attr]
    staged = split(network, ROWS, locations=["l1", "l2"])
    assert staged.trainable
    same_in_training(network, staged)
    trained = copy.deepcopy(staged).train()
    trained(ROWS)
    assert torch.equal(trained.original_state_dict()["norm.running_mean"], network.norm.running_mean)


def on_a_block(module: nn.Module) -> None:
    module.l2 = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module.l2.register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 0.1,))


def on_the_network(module: nn.Module) -> None:
    module.register_forward_hook(lambda layer, args, output: output * 2 if layer.training else output)


@pytest.mark.parametrize("register", [on_a_block, on_the_network], ids=named)
def test_hooks_act_or_training_is_refused(register: Callable[[nn.Module], None]) -> None:
    network = Layers(lambda self, x: x)
    register(network)
    staged = split(network, ROWS, locations=["l1"])
    assert_evaluates_alike(network, staged, ROWS)
    if staged.trainable:
        same_in_training(network, staged)


def remembers(self: Any, x: Tensor) -> Tensor:
    out = x if self.kept is None else x - self.kept
    self.kept = x.detach()
    return out


def test_memory_in_attributes_is_refused() -> None:
    with pytest.raises(SplitError, match=r"second call.*buffers"):
        split(Layers(remembers), ROWS)


def test_frozen_parameters_stay_frozen() -> None:
    network = Layers(without_gradient).requires_grad_(False)
    staged = split(network, ROWS)
    assert not staged.trainable
    assert not any(p.requires_grad for p in (*network.parameters(), *staged.parameters()))
    assert all(p.grad is None for p in network.parameters())


def noisy_and_annealed(self: Any, x: Tensor) -> Tensor:
    x = self.drop(x)
    return annealed(self, x)


def test_random_numbers_do_not_hide_what_else_is_lost() -> None:
    staged = split(Layers(noisy_and_annealed), ROWS)
    assert staged.eval_only is not None and "outputs of the second call" in staged.eval_only


def frozen_scale(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().mean()
    return self.drop(x) * scale


def test_random_numbers_do_not_change_the_reason() -> None:
    staged = split(Layers(frozen_scale), ROWS)
    assert staged.eval_only is not None and "gradients that are switched off" in staged.eval_only


def test_sparse_gradients_are_compared() -> None:
    network = nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert split(network, torch.randint(0, 20, (4, 5))).trainable


class KeptWhole(nn.Module):
    """Decides by values, in a module that is kept as one node and can be trained as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_a_module_that_decides_by_values_is_kept_whole_and_trained() -> None:
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), KeptWhole(), nn.Linear(8, 2))
    staged = split(network, ROWS)
    assert staged.trainable
    for rows in (ROWS, -ROWS):
        assert torch.equal(staged(rows), network(rows))


def test_places_are_chosen_where_both_modes_can_be_cut() -> None:
    """Training updates the statistics twice, so that no cut may lie between; evaluation could be cut there."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)
            self.body = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.body:
                x = layer(x)
                if self.training:
                    self.mean.lerp_(x.detach().mean(0), 0.1)
                x = x - self.mean
            return self.last(x)

    for locations in (None, 1):
        staged = split(Twice(), ROWS, locations=locations)
        assert staged.trainable
    assert not split(Twice(), ROWS, locations=["body.1"]).trainable
