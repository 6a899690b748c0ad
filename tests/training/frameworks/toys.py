"""A small branched network with BatchNorm, and labels of which some are missing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree

TASKS = ("a", "b")
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = {"a": X[:, :2].sum(1, keepdim=True), "b": X[:, 2:4] - X[:, :2]}
MISSING = {"a": [1, 5, 6], "b": [0, 4, 5, 6, 7]}  # of batches of 4, the second has no label of b
LABELS = {task: values.index_fill(0, torch.tensor(MISSING[task]), torch.nan) for task, values in Y.items()}
LOSSES: dict[str, Any] = {"a": F.mse_loss, "b": F.l1_loss}


def single(outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


def branched() -> BranchedNetwork:
    networks = {"a": single(1, 0), "b": single(2, 1)}
    return branchnet.build(Tree.shared(TASKS, 1), networks, example=X[:2], locations=["2"], init="donor")


def known_losses(network: BranchedNetwork, rows: Tensor) -> dict[str, Tensor]:
    """The mean loss of each task over the labels that are there, in plain PyTorch."""
    outputs, found = network(X[rows]), {}
    for task, labels in LABELS.items():
        known = ~labels[rows].isnan().any(1)
        if known.any():
            found[task] = LOSSES[task](outputs[task][known], labels[rows][known])
    return found


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
