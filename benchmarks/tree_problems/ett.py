"""How four series of a transformer station change over the next day, from the last four days, split by time."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from branchnet.training import rmse
from tree_problems.problem import Rows, TreeProblem

TASKS = ("HUFL", "MUFL", "LUFL", "OT")
MONTH = 30 * 24
PAST, FUTURE, SERIES = 96, 24, 7


def load(data: Path) -> TreeProblem:
    """Twelve months to train on, the four after the next four for the test; nothing reaches across."""
    with (data / "ett" / "ETTh1.csv").open() as file:
        read = list(csv.reader(file))
    series = torch.tensor([[float(value) for value in row[1:]] for row in read[1:]])
    series = (series - series[: 12 * MONTH].mean(0)) / series[: 12 * MONTH].std(0)
    columns = [read[0][1:].index(task) for task in TASKS]

    def rows(start: int, end: int) -> Rows:
        starts = torch.arange(start * MONTH, end * MONTH - PAST - FUTURE, 3)
        windows = torch.stack([series[begin : begin + PAST + FUTURE] for begin in starts.tolist()])
        windows = windows - windows[:, PAST - 1 : PAST]  # the level of four months differs from that of the year before
        labels = {task: windows[:, PAST:, k] for task, k in zip(TASKS, columns, strict=True)}
        return windows[:, :PAST].flatten(1), labels

    return TreeProblem(
        rows(0, 12),
        rows(16, 20),
        losses=dict.fromkeys(TASKS, F.mse_loss),
        metrics=dict.fromkeys(TASKS, rmse("sd")),
        factories=dict.fromkeys(TASKS, network),
        locations=["1", "3", "5"],
        steps=300,
        batch_size=64,
        learning_rate=1e-3,
    )


def network() -> nn.Module:
    """100,000 parameters."""
    return nn.Sequential(
        nn.Linear(PAST * SERIES, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, FUTURE),
    )
