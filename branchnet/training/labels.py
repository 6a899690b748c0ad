"""The labels of each batch by task: given for all samples and matched by number, or read together with the inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchnet.data.call_forms import CallForm
from branchnet.data.collation import as_labels, collate, gather
from branchnet.data.samples import Batch
from branchnet.errors import DataError
from branchnet.utils.installed_torch.torch_internals import pytree

SINGLE = "loss"
"""What the only task of a network that is not branched is called; its labels may stand under any name."""


@dataclass(frozen=True)
class KnownLabels:
    """The labels of those samples of a batch that have one.

    Attributes:
        values: what the loss is given, stacked where it can be.
        rows: the positions of the samples in the batch, (L,); None where all have a label.
        count: how many they are, L.
    """

    values: Any
    rows: Tensor | None
    count: int

    def of(self, output: Any) -> Any:
        """The rows of an output that belong to the labels.

        Args:
            output: of the whole batch.
        """
        rows = self.rows
        return output if rows is None else pytree.tree_map_only(Tensor, lambda leaf: leaf[rows.to(leaf.device)], output)


def labels_of(batch: Batch, given: Mapping[str, Any] | None, tasks: Collection[str]) -> Mapping[str, Any]:
    """The labels of `tasks` for a batch.

    Args:
        batch: with labels read, where none are given.
        given: for each task the labels of all samples.
        tasks: what labels are needed for; labels that are read without a task's name are those of a single task.

    Raises:
        DataError: samples that come in an unknown order, so that given labels cannot be matched; labels that are
            missing, or are not by task.
    """
    found = _found(batch, given, tasks)
    if missing := [task for task in tasks if found.get(task) is None]:
        by_task = _by_task(tasks)
        raise DataError(f"the samples have labels {list(found)} and lack those of {missing}; expected {by_task}")
    return found


def known_labels(batch: Batch, given: Mapping[str, Any] | None, tasks: Collection[str]) -> dict[str, KnownLabels]:
    """The labels of `tasks` for those samples that have them; tasks without any in this batch are left out.

    Missing is a task that a sample does not name, None, and in floating-point labels what is NaN throughout.

    Args:
        batch: with labels read, where none are given.
        given: for each task the labels of all samples.
        tasks: what labels are wanted for.

    Returns:
        labels by task.

    Raises:
        DataError: as of `labels_of`, but for labels that are missing.
    """
    found = _found(batch, given, tasks)
    known = {task: _known(found[task], len(batch)) for task in tasks if found.get(task) is not None}
    return {task: labels for task, labels in known.items() if labels.count}


def _found(batch: Batch, given: Mapping[str, Any] | None, tasks: Collection[str]) -> Mapping[str, Any]:
    if given is not None:
        return _matched(batch, given, tasks)
    if batch.labels is None:
        raise DataError(
            f"the samples have no labels; expected {_by_task(tasks)} from each, or labels given for all of them"
        )
    if not isinstance(batch.labels, Mapping):
        if len(tasks) > 1 or isinstance(batch.labels, tuple):
            raise DataError(
                f"the samples have labels without task names; expected {_by_task(tasks)} for tasks {list(tasks)}"
            )
        return dict.fromkeys(tasks, batch.labels)
    if list(tasks) == [SINGLE] and len(batch.labels) == 1:
        return dict(zip(tasks, batch.labels.values(), strict=True))
    return batch.labels


def _by_task(tasks: Collection[str]) -> str:
    return "(inputs, {task: label})" if len(tasks) > 1 else "(inputs, label)"


def _matched(batch: Batch, given: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    if batch.index is None:
        raise DataError(
            "labels are given apart, and the loader's order is not known, as when it shuffles or when several "
            "workers read a stream; expected labels from the loader itself, (inputs, {task: label}), or the Dataset in "
            "place of the loader"
        )
    last = int(batch.index.max())
    wanted = [task for task in tasks if given.get(task) is not None]
    if short := {task: len(given[task]) for task in wanted if len(given[task]) <= last}:
        raise DataError(f"there are more than {last} samples, but labels of another number: {short}")
    return {task: rows_of(given[task], batch.index) for task in wanted}


def rows_of(labels: Any, index: Tensor) -> Any:
    """The labels of some samples.

    Args:
        labels: of all samples: a tensor, or a list in which None is a label that is missing.
        index: the numbers of the samples.
    """
    if isinstance(labels, Sequence) and not isinstance(labels, str | bytes):
        return [labels[number] for number in index.tolist()]
    return gather(as_labels(labels, CallForm()), index)


def _known(labels: Any, size: int) -> KnownLabels:
    if isinstance(labels, list | tuple) and len(labels) == size:
        rows = [row for row, label in enumerate(labels) if not _is_missing(label)]
        present = [labels[row] for row in rows]
        stackable = present and all(isinstance(label, Tensor | np.ndarray | int | float) for label in present)
        values = collate(present, CallForm()) if stackable else present
        return KnownLabels(values, None if len(rows) == size else torch.tensor(rows), len(rows))
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim():
        missing = labels.isnan().reshape(len(labels), -1).all(1)
        if bool(missing.any()):
            rows_left = (~missing).nonzero()[:, 0]
            return KnownLabels(labels[rows_left], rows_left.cpu(), len(rows_left))
    return KnownLabels(labels, None, size)


def _is_missing(label: Any) -> bool:
    if isinstance(label, Tensor) and label.is_floating_point():
        return bool(label.isnan().all())
    return label is None or (isinstance(label, float) and label != label)
