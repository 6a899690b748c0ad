"""A digit over a piece of clothing, 36 x 36 (a made composite of real images): two tasks read one, two the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tree_problems.problem import Rows, TreeProblem
from tree_problems.small_images import LOCATIONS, learned, network

TASKS = ("m_class", "m_slant", "f_class", "f_aspect")


def load(data: Path) -> TreeProblem:
    """8,000 images to train on, 2,000 for the test; numbers in standard deviations."""
    found = np.load(data / "overlay36" / "overlay36.npz")
    x = torch.from_numpy(found["images"])[:, None].float() / 255
    labels = {task: torch.from_numpy(found[task]) for task in TASKS}
    for task, label in labels.items():
        if label.is_floating_point():
            labels[task] = (label - label[:8000].mean(0)) / label[:8000].std(0)
    parts = [slice(0, 8000), slice(8000, None)]
    train, test = ((x[part], {task: label[part] for task, label in labels.items()}) for part in parts)
    return problem(train, test)


def problem(train: Rows, test: Rows) -> TreeProblem:
    """What is learned, by the labels."""
    chosen = {task: learned(label) for task, label in train[1].items()}
    return TreeProblem(
        train,
        test,
        losses={task: loss for task, (loss, _, _) in chosen.items()},
        metrics={task: metric for task, (_, metric, _) in chosen.items()},
        factories={task: network(outputs) for task, (_, _, outputs) in chosen.items()},
        locations=LOCATIONS,
        steps=300,
        batch_size=32,
        learning_rate=2e-3,
        repeated=40,
    )
