"""Metrics of a network over a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.collation import moved
from branchnet.data.samples import Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.stages.tracing.input_order import InputOrder, run_tasks
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.labels import known_labels
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.modes import evaluation_mode


def evaluate(
    network: nn.Module,
    inputs: Source,
    targets: Mapping[str, Tensor] | None,
    metrics: Mapping[str, AnyMetric],
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """Compute each task's metric of a network that returns `{task: output}`, in eval mode; its modes are restored.

    Args:
        network: a `BranchedNetwork`, or `SeparateNetworks`.
        inputs: K samples, in whatever `branchnet.data.read_samples` takes; each is read once for all tasks.
        targets: for each task K targets: labels, or another network's outputs. None where the samples come with
            labels: (inputs, {task: target}). A sample without a label of a task (None, or not named) does not count in
            that task's metric.
        metrics: for each task its metric: one of ours, or an object of torchmetrics, which is not changed.
        batch_size: samples a batch, where they do not come in batches; it does not change the metrics, which are of
            the whole set.

    Returns:
        the metrics by task.

    Raises:
        TrainingError: metrics that are not a `Metric` for each task, a metric without targets, targets of another
            number than inputs, or outputs and targets that a metric refuses; the task is named.
        DataError: samples that cannot be read, or cannot be matched with the targets.

    >>> import torch, branchnet
    >>> from branchnet.training import accuracy, rmse
    >>> networks = branchnet.SeparateNetworks({"class": torch.nn.Linear(3, 3), "size": torch.nn.Linear(3, 1)})
    >>> targets = {"class": torch.tensor([0, 1, 2, 0]), "size": torch.zeros(4, 1)}
    >>> metrics = {"class": accuracy(), "size": rmse("m")}
    >>> list(branchnet.evaluate(networks, torch.rand(4, 3), targets, metrics))
    ['class', 'size']
    """
    if not isinstance(metrics, Mapping):
        raise TrainingError(
            f"metrics is a {type(metrics).__name__}; expected metrics by task, such as "
            '{"depth": branchnet.training.rmse()}'
        )
    values = evaluate_each(network, inputs, targets, list(metrics.items()), batch_size=batch_size)
    return dict(zip(metrics, values, strict=True))


@keeping_freed_memory()
def evaluate_each(
    network: nn.Module,
    inputs: Source,
    targets: Mapping[str, Any] | None,
    metrics: Sequence[tuple[str, Any]],
    *,
    batch_size: int = 64,
) -> list[float]:
    """Compute several metrics of some tasks in one pass over the samples.

    Args:
        network: as `evaluate` takes it, and so are the other arguments.
        inputs: K samples.
        targets: by task, or None.
        metrics: each with its task.
        batch_size: samples a batch.

    Returns:
        the metrics, in their order.

    Raises:
        TrainingError: as `evaluate`.
        DataError: as `evaluate`.
    """
    tasks = list(dict.fromkeys(task for task, _ in metrics))
    if targets is not None and (missing := sorted(set(tasks) - set(targets))):
        raise TrainingError(
            f"tasks {missing} have a metric and no targets; expected them, too; found {sorted(targets)}"
        )
    samples = read_samples(inputs, call_form(network), labels=targets is None)
    _check_number(samples.count, targets, tasks)
    device = next(chain(network.parameters(), network.buffers())).device
    running = [(task, _named(task, read_metric, metric).accumulation()) for task, metric in metrics]
    order, seen = InputOrder(network, partial(run_tasks, tasks=tasks)), 0
    with torch.no_grad(), evaluation_mode(network):
        for batch in samples.batches(batch_size):
            known = known_labels(batch, targets, tasks)
            outputs = network(order.placed(batch.inputs, device), tasks=list(known)) if known else {}
            seen += len(batch)
            of_tasks = {
                task: (labels.of(outputs[task]), moved(labels.values, device)) for task, labels in known.items()
            }
            for task, metric in running:
                if task in of_tasks:
                    _named(task, metric.update, *of_tasks[task])
    _check_number(seen, targets, tasks)
    return [_named(task, metric.result) for task, metric in running]


def _check_number(count: int | None, targets: Mapping[str, Tensor] | None, tasks: Iterable[str]) -> None:
    if count is None or targets is None:
        return
    if wrong := {task: len(targets[task]) for task in tasks if len(targets[task]) != count}:
        raise TrainingError(f"the numbers of targets are {wrong}; expected {count}, as there are inputs")


def _named(task: str, compute: Callable[..., Any], *values: Any) -> Any:
    try:
        return compute(*values)
    except TrainingError as error:
        raise TrainingError(f"task {task!r}: {error}") from error
