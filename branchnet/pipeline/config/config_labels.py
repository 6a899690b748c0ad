"""The labels that a config names, with its images and losses: what gradients are taken of, or stitches judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchnet.data.call_forms import described
from branchnet.data.collation import gather
from branchnet.data.samples import Source, count_samples
from branchnet.errors import DataError, SpecError
from branchnet.pipeline.config.config_sources import call_factory, find_loss
from branchnet.pipeline.config.run_config import RunConfig
from branchnet.pipeline.problem import divide, held_out_rows

ADVICE = '`labels: "module:function"`, which returns {task: labels}, and `loss: "torch.nn.functional:mse_loss"`'


@dataclass(frozen=True)
class Labelled:
    """Training images with their labels, and what each task is trained on.

    Attributes:
        images: K images.
        labels: K labels by task.
        losses: a function of (output, labels of a batch) by task.
    """

    images: Source
    labels: dict[str, Tensor]
    losses: dict[str, Callable[[Any, Any], Tensor]]


def labelled(config: RunConfig, path: Path, images: Source) -> Labelled:
    """Call the config's factory of labels and find its losses; leave out what is held out.

    Args:
        config: the config.
        path: its file.
        images: K images.

    Returns:
        What is trained on.

    Raises:
        SpecError: a config without labels or losses, or with functions that are not there.
        DataError: labels of other tasks, or of another number of images.
    """
    missing = [f"networks: {task}: loss" for task, network in config.networks.items() if network.loss is None]
    if config.labels is None or missing:
        missing = [*(["labels"] if config.labels is None else []), *missing]
        raise SpecError(f"{path}: gradients need labels and losses; missing: {', '.join(missing)} (such as {ADVICE})")
    return _labelled(config, path, images)


def labels_and_losses(config: RunConfig, path: Path, images: Source) -> Labelled:
    """The same of those networks alone that name a loss, one or more.

    Args:
        config: the config.
        path: its file.
        images: K images.

    Returns:
        The images that are not held out, with labels and losses of some tasks.

    Raises:
        SpecError: a config without labels or any loss, or with functions that are not there.
        DataError: labels of other tasks, or of another number of images.
    """
    if config.labels is None or all(network.loss is None for network in config.networks.values()):
        raise SpecError(f"{path}: --labelled needs labels and the loss of one network or more (such as {ADVICE})")
    return _labelled(config, path, images)


def _labelled(config: RunConfig, path: Path, images: Source) -> Labelled:
    losses = {task: wanted.loss for task, wanted in config.networks.items() if wanted.loss is not None}
    count = count_samples(images)
    labels = _checked_labels(call_factory(str(config.labels), path.parent), config, count)
    rows = torch.tensor(held_out_rows(count, config.held_out, config.seed)[0])
    return Labelled(
        images=divide(images, config)[0],
        labels=gather({task: labels[task] for task in losses}, rows),
        losses={task: find_loss(str(loss), path.parent) for task, loss in losses.items()},
    )


def _checked_labels(found: Any, config: RunConfig, count: int) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or set(found) != set(config.networks):
        given = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"labels: {config.labels} returned {given}; expected {{task: labels}} for every task")
    labels = {}
    for task in config.networks:
        labels[task] = torch.from_numpy(found[task]) if isinstance(found[task], np.ndarray) else found[task]
        if not isinstance(labels[task], Tensor) or labels[task].shape[:1] != (count,):
            given = described(labels[task])
            raise DataError(
                f"labels: {config.labels} returned {given} for {task!r}; expected {count} labels, one for each image"
            )
    return labels
