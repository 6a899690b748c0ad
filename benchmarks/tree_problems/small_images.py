"""The network and the tasks that the two sets of small grey images have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.training import Metric, accuracy, r_squared

LOCATIONS = ("0", "1", "2")


def network(outputs: int) -> Callable[[], nn.Module]:
    """About 60,000 parameters: three convolutions of stride 2, each a stage, and a linear head."""

    def block(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())

    def made() -> nn.Module:
        return nn.Sequential(
            block(1, 16), block(16, 32), block(32, 64), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(576, outputs)
        )

    return made


def learned(label: Tensor) -> tuple[Callable[[Tensor, Tensor], Tensor], Metric, int]:
    """Loss, metric and number of outputs of a task, by its labels: classes (K,) or numbers (K, outputs)."""
    if label.is_floating_point():
        return F.mse_loss, r_squared(), label.shape[1]
    return F.cross_entropy, accuracy(), int(label.max()) + 1
