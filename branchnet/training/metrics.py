"""Metrics as streams of sums: each batch adds to a vector, the vector gives the number at the end.

So a metric over a whole data set is exact (a mean IoU is not the mean of batch IoUs) and needs no memory for outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.data.collation import moved, placed
from branchnet.data.samples import Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.labels import labels_of
from branchnet.utils.modes import evaluation_mode


@dataclass(frozen=True)
class Metric:
    """A number that says how good outputs are.

    Attributes:
        name: what tables call it, with its unit.
        larger_is_better: its direction.
        sums: from a batch's outputs and targets to a float64 vector that is added up over batches.
        result: from the total vector to the metric.
    """

    name: str
    larger_is_better: bool
    sums: Callable[[Tensor, Tensor], Tensor]
    result: Callable[[Tensor], float]


def accuracy() -> Metric:
    """Share of samples (or pixels) whose largest logit, along dimension 1, is the target's class; in percent.

    Returns:
        a metric of logits (B, classes, ...) and integers (B, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        hits = output.argmax(1) == target
        return _pair(hits.sum(), hits.numel())

    return Metric("accuracy %", True, sums, lambda total: 100 * _ratio(total))


def mean_iou(classes: int) -> Metric:
    """Mean over the classes that occur of intersection over union (Everingham et al. 2010); in percent.

    Args:
        classes: the number of classes.

    Returns:
        a metric of logits (B, classes, ...) and integers (B, ...), of which negative ones are ignored.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        known = target >= 0
        # One number for each pair (class, predicted class): counting them gives the confusion matrix, row by row.
        pairs = target[known] * classes + output.argmax(1)[known]
        return torch.bincount(pairs, minlength=classes**2).double()

    def result(total: Tensor) -> float:
        confusion = total.view(classes, classes)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        return 100 * float((hits[union > 0] / union[union > 0]).mean())

    return Metric("mean IoU %", True, sums, result)


def rmse(unit: str = "") -> Metric:
    """Root of the mean squared difference.

    Args:
        unit: for the metric's name.

    Returns:
        a metric of outputs and targets of one shape.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        return _pair((output.double() - target.double()).square().sum(), target.numel())

    return Metric(f"RMSE {unit}".strip(), False, sums, lambda total: _ratio(total) ** 0.5)


def mean_absolute_error(unit: str = "") -> Metric:
    """Mean absolute difference.

    Args:
        unit: for the metric's name.

    Returns:
        a metric of outputs and targets of one shape.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        return _pair((output.double() - target.double()).abs().sum(), target.numel())

    return Metric(f"MAE {unit}".strip(), False, sums, _ratio)


def mean_angle() -> Metric:
    """Mean angle between vectors along dimension 1, such as surface normals; in degrees.

    Returns:
        a metric of outputs and targets (B, C, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(output.double(), target.double(), dim=1).clamp(-1, 1)
        return _pair(torch.rad2deg(torch.acos(cosine)).sum(), cosine.numel())

    return Metric("mean angle °", False, sums, _ratio)


def explained_variance() -> Metric:
    """Share of the target's variance (around its mean for each channel) that the output explains; in percent.

    Returns:
        a metric of outputs and targets (B, C, ...) or (B,).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        wanted = channels_last_rows(target).double()
        error = (channels_last_rows(output).double() - wanted).square().sum().view(1)
        count = torch.tensor([wanted.shape[0]], dtype=torch.float64, device=wanted.device)
        return torch.cat([error, count, wanted.sum(0), wanted.square().sum(0)])

    def result(total: Tensor) -> float:
        error, count = total[0], total[1]
        first, second = total[2:].chunk(2)
        spread = (second - first.square() / count).sum()
        return 100 * float(1 - error / spread.clamp_min(torch.finfo(torch.float64).tiny))

    return Metric("explained variance %", True, sums, result)


def top1_agreement() -> Metric:
    """Share of samples on which two sets of logits have the same largest class; in percent.

    Returns:
        a metric of logits and logits (B, classes, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        same = output.argmax(1) == target.argmax(1)
        return _pair(same.sum(), same.numel())

    return Metric("top-1 agreement %", True, sums, lambda total: 100 * _ratio(total))


def kl_divergence() -> Metric:
    """Mean Kullback-Leibler divergence KL(target || output) of the softmax over dimension 1, in nats.

    Returns:
        a metric of logits and logits (B, classes, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        wanted = target.double().log_softmax(1)
        divergence = (wanted.exp() * (wanted - output.double().log_softmax(1))).sum(1)
        return _pair(divergence.sum(), divergence.numel())

    return Metric("KL nats", False, sums, _ratio)


def evaluate(
    network: nn.Module,
    inputs: Source,
    targets: Mapping[str, Tensor] | None,
    metrics: Mapping[str, Metric],
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """Compute each task's metric of a network that returns `{task: output}`, in eval mode; its modes are restored.

    Args:
        network: a `BranchedNetwork`, or `SeparateNetworks`.
        inputs: K samples, in whatever `branchnet.data.read_samples` takes; each is read once for all tasks.
        targets: for each task K targets: labels, or another network's outputs. None where the samples come with
            labels: (inputs, {task: target}).
        metrics: for each task its metric.
        batch_size: samples a batch, where they do not come in batches; it does not change the metrics, which are of
            the whole set.

    Returns:
        the metrics by task.

    Raises:
        TrainingError: a metric without targets, or targets of another number than inputs.
        DataError: samples that cannot be read, or cannot be matched with the targets.

    >>> import torch, branchnet
    >>> from branchnet.training import accuracy, rmse
    >>> networks = branchnet.SeparateNetworks({"class": torch.nn.Linear(3, 3), "size": torch.nn.Linear(3, 1)})
    >>> targets = {"class": torch.tensor([0, 1, 2, 0]), "size": torch.zeros(4, 1)}
    >>> metrics = {"class": accuracy(), "size": rmse("m")}
    >>> list(branchnet.evaluate(networks, torch.rand(4, 3), targets, metrics))
    ['class', 'size']
    """
    if targets is not None and (missing := sorted(set(metrics) - set(targets))):
        raise TrainingError(
            f"tasks {missing} have a metric and no targets; expected them, too; found {sorted(targets)}"
        )
    samples = read_samples(inputs, call_form(network), labels=targets is None)
    _check_number(samples.count, targets, metrics)
    device = next(network.parameters()).device
    totals: dict[str, Tensor] = {}
    seen = 0
    with torch.no_grad(), evaluation_mode(network):
        for batch in samples.batches(batch_size):
            wanted = labels_of(batch, targets, metrics)
            outputs = network(placed(batch.inputs, device), tasks=list(metrics))
            seen += len(batch)
            for task, metric in metrics.items():
                sums = metric.sums(outputs[task], moved(wanted[task], device))
                totals[task] = totals[task] + sums if task in totals else sums
    _check_number(seen, targets, metrics)
    return {task: metric.result(totals[task]) for task, metric in metrics.items()}


def _check_number(count: int | None, targets: Mapping[str, Tensor] | None, tasks: Iterable[str]) -> None:
    if count is None or targets is None:
        return
    if wrong := {task: len(targets[task]) for task in tasks if len(targets[task]) != count}:
        raise TrainingError(f"the numbers of targets are {wrong}; expected {count}, as there are inputs")


def channels_last_rows(values: Tensor) -> Tensor:
    """Reshape (B, C, ...) to rows (B * ..., C), in which every position is a sample; (B,) to (B, 1)."""
    return values.reshape(-1, 1) if values.dim() < 2 else values.movedim(1, -1).reshape(-1, values.shape[1])


def _pair(total: Tensor, count: int) -> Tensor:
    return torch.stack([total.double(), torch.tensor(float(count), dtype=torch.float64, device=total.device)])


def _ratio(total: Tensor) -> float:
    return float(total[0] / total[1])
