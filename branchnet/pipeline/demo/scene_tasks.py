"""The seven tasks of the demo: for each the output of its network, its loss and its metric; and their run config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from branchnet.data import LAYOUTS, SEGMENTS, LabelForm, scenes
from branchnet.models import create
from branchnet.reporting.plots.samples_plot import Kind, TaskSamples
from branchnet.specification.yaml_text import dump_yaml
from branchnet.stitching.output_distances import OutputKind
from branchnet.training import Metric, accuracy, mean_absolute_error, mean_angle, mean_iou, rmse

_EXAMPLES = {"count": 600, "start": 10_000}  # scenes that the demo neither trains nor tests on


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
        return create("branchnet:scene_network", outputs=self.outputs, kind=self.kind)

    @property
    def output_kind(self) -> OutputKind:
        """How outputs are compared with those of another network."""
        kinds: dict[Any, OutputKind] = {F.cross_entropy: "classification", cosine_loss: "direction"}
        return kinds.get(self.loss, "regression")

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


def example_images() -> Tensor:
    """600 scenes, the images of the config that the demo leaves behind."""
    return scenes(**_EXAMPLES).images


def example_labels() -> dict[str, Tensor]:
    """What the seven networks should give for `example_images`."""
    labels = scenes(**_EXAMPLES).labels
    return {name: task.target(labels[name]) for name, task in TASKS.items()}


class ExampleSamples(Dataset[Any]):
    """The scenes of `example_images` with their labels: (image, {task: label})."""

    label_forms: Mapping[str, LabelForm] = {
        "segmentation": LabelForm("segmentation", len(SEGMENTS)),
        "depth": LabelForm("map", unit="log m"),
        "normals": LabelForm("normals", 3),
        "edges": LabelForm("map"),
        "keypoints": LabelForm("map"),
        "scene": LabelForm("classification", len(LAYOUTS)),
        "count": LabelForm("regression", unit="objects"),
    }

    def __init__(self) -> None:
        self._images, self._labels = example_images(), example_labels()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self._images[index], {task: labels[index] for task, labels in self._labels.items()}


def run_config(weights: Mapping[str, str], *, budget: str, steps: int, batch_size: int) -> str:
    """The YAML text of a config of `branchnet run` with the demo's networks.

    Args:
        weights: each task's weights file, relative to the config.
    """
    networks = {
        name: {
            "constructor": "branchnet:scene_network",
            "arguments": {"outputs": task.outputs, "kind": task.kind},
            "weights": weights[name],
            "kind": task.output_kind,
            "loss": f"{task.loss.__module__}:{task.loss.__name__}",
        }
        for name, task in TASKS.items()
    }
    return dump_yaml(
        {
            "networks": networks,
            "images": {"factory": f"{__name__}:{example_images.__name__}"},
            "labels": f"{__name__}:{example_labels.__name__}",
            "train": f"{__name__}:{ExampleSamples.__name__}",
            "fit": {"steps": steps, "batch_size": batch_size, "learning_rate": 0.003},
            "budget": budget,
            "probe": 300,
            "steps": steps,
            "batch_size": batch_size,
        }
    )
