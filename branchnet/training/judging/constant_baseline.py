"""The constant answer: for each task the one best whatever the input, the least that must be beaten.

It is fitted on labels to train on, or on other networks' outputs, and scored where networks are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from branchnet.data.samples import Source, read_samples
from branchnet.errors import DataError, TrainingError
from branchnet.training.judging.foreign_metrics import AnyMetric, ForeignMetric, read_metric
from branchnet.training.judging.metric import Metric
from branchnet.training.labels import known_labels

Labels: TypeAlias = "Mapping[str, Tensor] | Source"
"""For each task K labels, or samples that come with them: (inputs, {task: label or None})."""

MOST_SAMPLES = 2000
"""Samples of a data set that answers are fitted on; of more, so many that are spread evenly over it."""
MOST_ROWS = 20_000_000
"""Labels of a task that an answer is fitted on; of more, so many that are spread evenly."""

_AT_ONCE = 16
"""Samples of a data set whose labels are held at once."""
_NUMBERS_AT_ONCE = 2**22
"""Of labels in memory, so many are looked at together."""


def constant_answers(train: Labels, metrics: Mapping[str, AnyMetric]) -> dict[str, Tensor]:
    """For each task the constant answer that is best under its metric, as far as that is known.

    The majority class for accuracy and mean IoU, the mean for squared errors, the median for absolute ones, the mean
    distribution for KL, "yes" everywhere for edges; the mean direction for angles, which is close to the best.

    Args:
        train: labels by task, or samples with labels; missing ones (None, NaN, what the metric ignores) do not count.
            Of a data set at most 2000 samples are read, spread evenly over it, and at most 20 million pixels.
        metrics: for each task its metric; of metrics of other libraries the majority class of integer labels, or the
            mean, is taken.

    Returns:
        by task a class (), or values (C,).

    Raises:
        TrainingError: a task without any known label, or a metric of ours that names no constant.
        DataError: samples without labels by task.

    >>> import torch, branchnet
    >>> labels = {"scene": torch.tensor([2, 0, 2, 1]), "size": torch.tensor([[1.0], [2.0], [9.0], [2.0]])}
    >>> metrics = {"scene": branchnet.training.accuracy(), "size": branchnet.training.mean_absolute_error()}
    >>> {task: answer.tolist() for task, answer in branchnet.training.constant_answers(labels, metrics).items()}
    {'scene': 2, 'size': [2.0]}
    """
    read = {task: _with_constant(task, metric) for task, metric in metrics.items()}
    rows: dict[str, list[Tensor]] = {task: [] for task in read}
    for batch in _label_batches(train, list(read), MOST_SAMPLES):
        for task, label in batch.items():
            rows[task].append(_thinned(read[task].constant.rows(label), MOST_ROWS // MOST_SAMPLES * len(label)))
    answers = {}
    for task, found in rows.items():
        if not found:
            raise TrainingError(f"task {task!r}: there is no label; expected some, to fit a constant answer on")
        try:
            answers[task] = read[task].constant.answer(_thinned(torch.cat(found), MOST_ROWS))
        except TrainingError as error:
            raise TrainingError(f"task {task!r}: {error}") from error
    return answers


def constant_scores(train: Labels, test: Labels, metrics: Mapping[str, AnyMetric]) -> dict[str, float]:
    """Score for each task the best constant answer: fitted on labels to train on, measured on others.

    Args:
        train: as `constant_answers` takes it.
        test: labels by task, or samples with labels, all of which are read.
        metrics: for each task its metric, as `evaluate` takes it.

    Returns:
        the metrics by task.

    Raises:
        TrainingError: a task without any known label, or labels that the metric refuses; the task is named.
        DataError: samples without labels by task.

    >>> import torch, branchnet
    >>> train, test = {"scene": torch.tensor([2, 0, 2, 1])}, {"scene": torch.tensor([2, 2, 2, 0])}
    >>> branchnet.training.constant_scores(train, test, {"scene": branchnet.training.accuracy()})
    {'scene': 75.0}
    """
    answers = constant_answers(train, metrics)
    read = {task: _with_constant(task, metric) for task, metric in metrics.items()}
    running = {task: metric.accumulation() for task, metric in read.items()}
    scores = {}
    try:
        for batch in _label_batches(test, list(read), None):
            for task, label in batch.items():
                running[task].update(read[task].constant.output(answers[task], label), label)
        for task in running:
            scores[task] = running[task].result()
    except TrainingError as error:
        raise TrainingError(f"task {task!r}: {error}") from error
    return scores


def _with_constant(task: str, metric: AnyMetric) -> Any:
    read: Metric | ForeignMetric = read_metric(metric)
    if read.constant is None:
        raise TrainingError(
            f"task {task!r}: no constant answer is known for the metric {read.name!r}; expected one with `constant`"
        )
    return read


def _thinned(rows: Tensor, most: int) -> Tensor:
    """At most `most` of the rows, spread evenly."""
    return rows if len(rows) <= most else rows[:: -(-len(rows) // most)]


def _label_batches(source: Labels, tasks: list[str], most: int | None) -> Iterator[dict[str, Tensor]]:
    """The labels that are there, in batches; of numbered samples no more than `most`."""
    if isinstance(source, Mapping) and any(task in source for task in tasks):
        if missing := [task for task in tasks if not isinstance(source.get(task), Tensor)]:
            raise TrainingError(f"tasks {missing} have a metric and no tensor of labels; expected them, too")
        for task in tasks:
            size = max(1, _NUMBERS_AT_ONCE * len(source[task]) // max(1, source[task].numel()))
            yield from ({task: part} for part in source[task].split(size) if len(part))
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Mapping | tuple):
        numbered = cast(Any, source)
        step = 1 if most is None else max(1, -(-len(numbered) // most))
        read = getattr(source, "labels", None)
        chosen = range(0, len(numbered), step)
        for start in range(0, len(chosen), _AT_ONCE):
            numbers = chosen[start : start + _AT_ONCE]
            samples = [read(number) if callable(read) else numbered[number][1] for number in numbers]
            yield from _stacked([_known(labels, tasks) for labels in samples])
    else:
        for batch in read_samples(source, labels=True).batches(_AT_ONCE):
            yield {task: labels.values for task, labels in known_labels(batch, None, tasks).items()}


def _stacked(samples: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
    """Labels of one shape as batches, one task after the other."""
    of_shape: dict[tuple[str, torch.Size], list[Tensor]] = {}
    for labels in samples:
        for task, label in labels.items():
            tensor = torch.as_tensor(label)
            of_shape.setdefault((task, tensor.shape), []).append(tensor)
    for (task, _), found in of_shape.items():
        yield {task: torch.stack(found)}


def _known(labels: Any, tasks: list[str]) -> dict[str, Any]:
    if not isinstance(labels, Mapping):
        raise DataError(f"labels are {type(labels).__name__}; expected (inputs, {{task: label}}) for tasks {tasks}")
    return {task: labels[task] for task in tasks if labels.get(task) is not None}
