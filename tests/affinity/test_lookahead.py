"""Gradient affinities against a published-style oracle, brute-force steps and what they promise to leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branchnet.affinity import gradient_affinity

ORACLE = json.loads((Path(__file__).parents[1] / "facts" / "tag_affinity_micro_oracle.json").read_text())
TASKS = ("t0", "t1", "t2")


class Tanh(nn.Module):
    """tanh(x W)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def table(rows: int, columns: int, formula) -> Tensor:
    return torch.tensor([[formula(i, j) for j in range(columns)] for i in range(rows)], dtype=torch.float64)


def oracle_problem():
    """Inputs, model, heads, targets and losses as the oracle's own `setup` line describes them."""
    x = table(8, 4, lambda i, j: ((7 * i + 3 * j) % 11 - 5) / 5)
    y = table(8, 3, lambda i, t: ((5 * i + 2 * t + 1) % 7 - 3) / 3)
    model = Tanh(table(4, 3, lambda i, j: ((3 * i + 5 * j) % 9 - 4) / 8))
    v = table(3, 3, lambda i, t: ((4 * i + 7 * t + 2) % 10 - 4.5) / 6)
    heads = {task: lambda hidden, t=t: hidden @ v[:, t] for t, task in enumerate(TASKS)}
    targets = {task: y[:, t] for t, task in enumerate(TASKS)}
    losses = {task: lambda output, target: ((output - target) ** 2).mean() for task in TASKS}
    return x, model, heads, targets, losses


@pytest.mark.parametrize("rate", ["0.1", "0.01", "0.001"])
@pytest.mark.parametrize(
    ("method", "key"), [("lookahead", "Z_from_i_onto_j"), ("first-order", "first_order_lr_gi_dot_gj_over_Lj")]
)
def test_oracle(rate: str, method: str, key: str) -> None:
    x, model, heads, targets, losses = oracle_problem()
    found = gradient_affinity(
        model, [(x, targets)], losses, heads=heads, method=method, learning_rate=float(rate), per_stage=False
    )
    np.testing.assert_allclose(found.values[0], ORACLE["results"][rate][key], atol=1e-9, rtol=0)
    assert found.directed


@pytest.mark.parametrize("control", [False, True])
def test_oracle_momentum(control: bool) -> None:
    x, model, heads, targets, losses = oracle_problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor(ORACLE["grads"], dtype=torch.float64).sum(0)
    found = gradient_affinity(model, [(x, targets)], losses, heads=heads, optimizer=optimizer, control=control)
    expected = ORACLE["results"]["momentum_keras_lr0.01_mu0.9"]
    difference = np.array(expected["control_no_gradient_onto_j"]) if control else 0.0
    np.testing.assert_allclose(found.values[0], np.array(expected["Z_from_i_onto_j"]) - difference, atol=1e-9, rtol=0)
