"""YOLO networks from the YAML files of ultralytics, with random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "classify": "-cls", "obb": "-obb"}
FAMILIES = {family: tuple(SUFFIXES) for family in ("yolov8n", "yolo11n", "yolo26n")} | {"yolov5n": ("detect",)}


def yolo(family: str, task: str, seed: int = 0, classes: int | None = None) -> Any:
    """A network in evaluation mode, its BatchNorm statistics not the initial ones."""
    from ultralytics.nn import tasks

    kinds = {
        "detect": tasks.DetectionModel,
        "segment": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "classify": tasks.ClassificationModel,
        "obb": tasks.OBBModel,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kinds[task](f"{family}{SUFFIXES[task]}.yaml", nc=classes, verbose=False).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
    return network


def predictions(output: Any) -> Any:
    """What the network infers, without the raw outputs next to it."""
    return output[0] if isinstance(output, tuple) else output
