"""Street scenes, 120 x 160, official splits: classes, layout (sky, upright, ground), class boundaries, image edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.training import edge_f_score, mean_iou, r_squared
from tree_problems.problem import Rows, TreeProblem

VOID, IGNORED = 11, 255
LAYOUT = torch.tensor([0, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, IGNORED])
OUTPUTS = {"classes": 11, "layout": 3, "boundaries": 1, "edges": 1}


def load(data: Path) -> TreeProblem:
    """367 scenes to train on, 233 for the test; void pixels count nowhere."""
    found = np.load(data / "camvid120" / "camvid120.npz")
    entropy = nn.CrossEntropyLoss(ignore_index=IGNORED)
    return TreeProblem(
        rows(found, "train"),
        rows(found, "test"),
        losses={
            "classes": entropy,
            "layout": entropy,
            "boundaries": F.binary_cross_entropy_with_logits,
            "edges": F.mse_loss,
        },
        metrics={
            "classes": mean_iou(11, ignore=IGNORED),
            "layout": mean_iou(3, ignore=IGNORED),
            "boundaries": edge_f_score(),
            "edges": r_squared(),
        },
        factories={task: network(outputs) for task, outputs in OUTPUTS.items()},
        locations=["0", "1", "2"],
        steps=150,
        batch_size=8,
        learning_rate=2e-3,
        sampled=40,
    )


def rows(found: Any, split: str) -> Rows:
    """A split's images and labels."""
    x = torch.from_numpy(found[f"{split}_images"]).permute(0, 3, 1, 2).float() / 255
    classes = torch.from_numpy(found[f"{split}_labels"]).long()
    boundaries = torch.zeros(classes.shape)
    boundaries[:, :-1] = (classes[:, 1:] != classes[:, :-1]).float()
    boundaries[:, :, :-1] = torch.maximum(boundaries[:, :, :-1], (classes[:, :, 1:] != classes[:, :, :-1]).float())
    labels = {"classes": classes.masked_fill(classes == VOID, IGNORED), "layout": LAYOUT[classes]}
    return x, labels | {"boundaries": boundaries[:, None], "edges": edges(x)}


def edges(images: Tensor) -> Tensor:
    """Size of the brightness's gradient (Sobel), in units of its standard deviation over all images."""
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    grey = images.mean(1, keepdim=True)
    across, down = (F.conv2d(F.pad(grey, (1, 1, 1, 1), "replicate"), k[None, None]) for k in (sobel, sobel.T))
    size = (across**2 + down**2).sqrt()
    return size / size.std()


def network(outputs: int) -> Callable[[], nn.Module]:
    """40,000 parameters at a quarter of the resolution."""

    def block(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())

    def made() -> nn.Module:
        return nn.Sequential(
            nn.Sequential(block(3, 16, 2), block(16, 24)),
            block(24, 48, 2),
            block(48, 48),
            nn.Conv2d(48, outputs, 1),
            nn.Upsample(scale_factor=4, mode="bilinear"),
        )

    return made
