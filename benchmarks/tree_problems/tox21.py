"""Four assays of tox21's 8,006 molecules from 1,024-bit fingerprints; labels that were not measured are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from branchnet.training import area_under_roc
from tree_problems.problem import Rows, TreeProblem

TASKS = ("NR-AhR", "NR-ER", "SR-ARE", "SR-MMP")  # two of each of the two panels


def load(data: Path) -> TreeProblem:
    """Read the fingerprints; a fifth of the molecules, drawn at random, is for the test."""
    found = np.load(data / "molnet" / "molnet_morgan1024.npz")
    x = torch.from_numpy(np.unpackbits(found["tox21_fp"], axis=1)).float()
    values = torch.from_numpy(found["tox21_y"]).float()
    values[values < 0] = torch.nan
    columns = [list(found["tox21_tasks"]).index(task) for task in TASKS]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    def rows(part: torch.Tensor) -> Rows:
        return x[part], {task: values[part, k : k + 1] for task, k in zip(TASKS, columns, strict=True)}

    return TreeProblem(
        *map(rows, order.split([6404, len(x) - 6404])),
        losses=dict.fromkeys(TASKS, F.binary_cross_entropy_with_logits),
        metrics={task: area_under_roc() for task in TASKS},
        factories=dict.fromkeys(TASKS, network),
        locations=["1", "3", "5"],
        steps=300,
        batch_size=128,
        learning_rate=1e-3,
    )


def network() -> nn.Module:
    """142,000 parameters."""
    return nn.Sequential(
        nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )
