"""The labels of each batch by task: given for all samples and matched by number, or read together with the inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from branchnet.data.call_forms import CallForm
from branchnet.data.collation import as_labels, gather
from branchnet.data.samples import Batch
from branchnet.errors import DataError


def labels_of(batch: Batch, given: Mapping[str, Tensor] | None, tasks: Collection[str]) -> Mapping[str, Any]:
    """The labels of `tasks` for a batch.

    Args:
        batch: with labels read, where none are given.
        given: for each task the labels of all samples.
        tasks: what labels are needed for; labels that are read without a task's name are those of a single task.

    Raises:
        DataError: samples that come in an unknown order, so that given labels cannot be matched; labels that are
            missing, or are not by task.
    """
    if given is not None:
        return _matched(batch, given, tasks)
    by_task = "(inputs, {task: label})" if len(tasks) > 1 else "(inputs, label)"
    if batch.labels is None:
        raise DataError(f"the samples have no labels; expected {by_task} from each, or labels given for all of them")
    if not isinstance(batch.labels, Mapping):
        if len(tasks) > 1 or isinstance(batch.labels, tuple):
            raise DataError(f"the samples have labels without task names; expected {by_task} for tasks {list(tasks)}")
        return dict.fromkeys(tasks, batch.labels)
    if len(tasks) == len(batch.labels) == 1:
        return dict(zip(tasks, batch.labels.values(), strict=True))
    if missing := [task for task in tasks if batch.labels.get(task) is None]:
        raise DataError(f"the samples have labels {list(batch.labels)} and lack those of {missing}; expected {by_task}")
    return batch.labels


def _matched(batch: Batch, given: Mapping[str, Tensor], tasks: Collection[str]) -> dict[str, Tensor]:
    if batch.index is None:
        raise DataError(
            "labels are given apart, and the loader's order is not known, as when it shuffles or when several "
            "workers read a stream; expected labels from the loader itself, (inputs, {task: label}), or the Dataset in "
            "place of the loader"
        )
    last = int(batch.index.max())
    if short := {task: len(given[task]) for task in tasks if len(given[task]) <= last}:
        raise DataError(f"there are more than {last} samples, but labels of another number: {short}")
    return {task: gather(as_labels(given[task], CallForm()), batch.index) for task in tasks}
