"""The seven tasks of the demo: for each the output of its network, its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet.data import LAYOUTS, SEGMENTS
from branchnet.training import Metric, accuracy, mean_absolute_error, mean_angle, mean_iou, rmse


@dataclass(frozen=True)
class SceneTask:
    """One task on procedural scenes.

    Attributes:
        outputs: channels of its network's output.
        kind: one output per pixel, or one per image.
        loss: what its network is trained on.
        metric: what it is judged by.
    """

    outputs: int
    kind: Literal["dense", "image"]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric

    def network(self) -> nn.Module:
        """A new network for the task."""
        return branchnet.create("branchnet:scene_network", outputs=self.outputs, kind=self.kind)


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between vectors along dimension 1, averaged."""
    return 1 - F.cosine_similarity(output, target, dim=1).mean()


TASKS = {
    "segmentation": SceneTask(len(SEGMENTS), "dense", F.cross_entropy, mean_iou(len(SEGMENTS))),
    "depth": SceneTask(1, "dense", F.l1_loss, rmse("m")),
    "normals": SceneTask(3, "dense", cosine_loss, mean_angle()),
    "edges": SceneTask(1, "dense", F.mse_loss, rmse()),
    "keypoints": SceneTask(1, "dense", F.mse_loss, rmse()),
    "scene": SceneTask(len(LAYOUTS), "image", F.cross_entropy, accuracy()),
    "count": SceneTask(1, "image", F.smooth_l1_loss, mean_absolute_error("objects")),
}
