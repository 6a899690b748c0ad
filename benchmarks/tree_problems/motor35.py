"""Handwritten characters, 35 x 35, with tasks out of the strokes of the pen; the test is by other people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tree_problems.overlay36 import problem
from tree_problems.problem import TreeProblem

TASKS = ("alphabet", "n_strokes", "path_len", "first_dir")
TRAINED_DRAWERS = 15


def load(data: Path) -> TreeProblem:
    """15 drawers to train on, 5 for the test; numbers in standard deviations, the first direction as a unit vector."""
    found = np.load(data / "omniglot_motor35" / "omniglot_motor35.npz")
    x = torch.from_numpy(found["images"])[:, None].float() / 255
    trained = torch.from_numpy(found["drawer"]) < TRAINED_DRAWERS
    labels = {task: torch.from_numpy(found[task]) for task in TASKS}
    labels["alphabet"] = labels["alphabet"].long()
    for task in ("n_strokes", "path_len"):
        values = labels[task].float()[:, None]
        labels[task] = (values - values[trained].mean()) / values[trained].std()
    train, test = ((x[part], {task: label[part] for task, label in labels.items()}) for part in (trained, ~trained))
    return problem(train, test)
