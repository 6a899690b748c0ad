"""The papers' toy problem: two losses in two variables, with a steep valley in which the mean of the gradients sticks.

Section 5.1 of "Conflict-Averse Gradient Descent for Multi-task Learning" (Liu et al. 2021), also used for Nash-MTL and
FAMO: the Pareto set is the segment from (-7, -8) to (7, -8), up to the small terms of the other branch. The rate is ten
times theirs, and the steps are a fraction of theirs.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.training import weighting_of

START = (-8.5, 7.5)


def toy(point: Tensor) -> dict[str, Tensor]:
    x, y = point.unbind()
    steep = [(0.5 * (-x - 7) - torch.tanh(-y)), (0.5 * (-x + 3) - torch.tanh(-y) + 2)]
    bowls = [((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20, ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20]
    upper, lower = torch.tanh(0.5 * y).clamp(min=0), torch.tanh(-0.5 * y).clamp(min=0)
    logs = [value.abs().clamp(min=5e-6).log() + 6 for value in steep]
    return {task: upper * log + lower * bowl for task, log, bowl in zip("ab", logs, bowls, strict=True)}


def trained(weights: str, steps: int, rate: float, shift: float = 0.0) -> tuple[float, float]:
    """The two losses after training from the start that is hardest for the mean."""
    layers = nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False)
    networks: dict[str, nn.Module] = {task: nn.Sequential(*layers) for task in "ab"}
    one = torch.ones(1, 1)
    net = branchnet.build(
        Tree(list("ab"), [[list("ab")]]), networks, example=one, locations=["0"], init="donor"
    ).train()
    net.freeze("heads.0", "heads.1")
    for head in net.heads:
        next(head.parameters()).data = torch.eye(2)
    point = next(net.nodes.parameters())
    point.data = torch.tensor(START)[:, None]
    optimizer = torch.optim.Adam([point], lr=rate)
    weighting = weighting_of(weights, net.tasks, net)

    def losses() -> dict[str, Tensor]:
        return {task: loss + shift for task, loss in toy(net(one)["a"][0]).items()}

    for _ in range(steps):
        optimizer.zero_grad()
        weighting.backward(net, losses())
        optimizer.step()
        weighting.after_step(losses)
    a, b = (loss.item() - shift for loss in losses().values())
    return a, b


def off_the_front(a: float, b: float) -> float:
    """0 on the Pareto set: there the distances to the bowls' centres sum to 14."""
    return math.sqrt(10 * (a + 20)) + math.sqrt(10 * (b + 20)) - 14


def test_the_mean_sticks_where_a_bargain_between_the_tasks_reaches_the_pareto_set() -> None:
    assert off_the_front(*trained("equal", 1500, 0.01)) > 10
    assert abs(off_the_front(*trained("nash-mtl", 1500, 0.01))) < 0.5


@pytest.mark.slow
def test_multiple_gradient_descent_reaches_it_as_well() -> None:
    pytest.importorskip("torchjd")
    assert abs(off_the_front(*trained("mgda", 1500, 0.01))) < 0.5


@pytest.mark.slow
def test_famo_comes_through_as_well_where_the_mean_still_sticks() -> None:
    assert off_the_front(*trained("equal", 3000, 0.01)) > 10
    assert off_the_front(*trained("famo", 3000, 0.01, shift=21.0)) < 2.5  # it needs positive losses
