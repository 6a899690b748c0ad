"""The seven tasks of the demo: for each the output of its network, its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet.data import LAYOUTS, SEGMENTS
from branchnet.reporting.samples_plot import Kind, TaskSamples
from branchnet.training import Metric, accuracy, mean_absolute_error, mean_angle, mean_iou, rmse


def _identity(labels: Tensor) -> Tensor:
    return labels


@dataclass(frozen=True)
class SceneTask:
    """One task on procedural scenes.

    Attributes:
        outputs: channels of its network's output.
        kind: one output per pixel, or one per image.
        loss: what its network is trained on.
        metric: what it is judged by.
        shown: how its samples are drawn.
        drawable: from targets or outputs to what is drawn.
        target: from labels to what the network shall give.
    """

    outputs: int
    kind: Literal["dense", "image"]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    shown: Kind
    drawable: Callable[[Tensor], npt.NDArray[Any]]
    target: Callable[[Tensor], Tensor] = _identity

    def network(self) -> nn.Module:
        """A new network for the task."""
        return branchnet.create("branchnet:scene_network", outputs=self.outputs, kind=self.kind)

    def samples(self, name: str, labels: Tensor, outputs: Mapping[str, Tensor]) -> TaskSamples:
        """Truth and each network's predictions for some images, in the form in which they are drawn."""
        predictions = {network: self.drawable(output) for network, output in outputs.items()}
        return TaskSamples(name, self.shown, self.drawable(labels), predictions)


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between vectors along dimension 1, averaged."""
    return 1 - F.cosine_similarity(output, target, dim=1).mean()


def _classes(values: Tensor) -> Tensor:
    return values.argmax(1) if values.is_floating_point() else values


def _segments(values: Tensor) -> npt.NDArray[Any]:
    return _classes(values).numpy()


def _plane(values: Tensor) -> npt.NDArray[Any]:
    return values[:, 0].numpy()


def _vectors(values: Tensor) -> npt.NDArray[Any]:
    return F.normalize(values, dim=1).movedim(1, -1).numpy()


def _layouts(values: Tensor) -> npt.NDArray[Any]:
    return np.array([LAYOUTS[i] for i in _classes(values).tolist()])


def _counts(values: Tensor) -> npt.NDArray[Any]:
    return values[:, 0].round().int().numpy()


TASKS = {
    "segmentation": SceneTask(len(SEGMENTS), "dense", F.cross_entropy, mean_iou(len(SEGMENTS)), "classes", _segments),
    "depth": SceneTask(1, "dense", F.l1_loss, rmse("log m"), "depth", _plane, torch.log),
    "normals": SceneTask(3, "dense", cosine_loss, mean_angle(), "normals", _vectors),
    "edges": SceneTask(1, "dense", F.mse_loss, rmse(), "grey", _plane),
    "keypoints": SceneTask(1, "dense", F.mse_loss, rmse(), "grey", _plane),
    "scene": SceneTask(len(LAYOUTS), "image", F.cross_entropy, accuracy(), "label", _layouts),
    "count": SceneTask(1, "image", F.smooth_l1_loss, mean_absolute_error("objects"), "label", _counts),
}
