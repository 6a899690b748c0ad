"""Metrics of classes, numbers and distributions; `Metric` says what a metric is."""

from __future__ import annotations

import torch
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.stitching.output_distances import channels_last_rows
from branchnet.training.judging.best_constants import (
    channel_constant,
    majority_answer,
    majority_class,
    mean,
    mean_distribution,
    median,
)
from branchnet.training.judging.known_targets import known_classes, known_logits, known_values
from branchnet.training.judging.metric import Metric as Metric
from branchnet.training.judging.metric import check_any, pair, ratio

_LOST = 1e-13
"""Share of a sum of squares below which a variance, their difference from another sum, is rounding error."""


def accuracy(*, ignore: int | None = None) -> Metric:
    """Share of samples (or pixels) whose largest logit, along dimension 1, is the target's class; in percent.

    Args:
        ignore: a label that does not count, as negative ones and NaN do not.

    Returns:
        a metric of logits (B, classes, ...) and labels (B, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        predicted, labels = known_classes(output, target, ignore)
        return pair((predicted == labels).sum(), labels.numel())

    return Metric("accuracy %", True, sums, lambda total: 100 * ratio(total), constant=majority_class(ignore))


def mean_iou(classes: int, *, ignore: int | None = None) -> Metric:
    """Mean over the classes that occur of intersection over union (Everingham et al. 2010); in percent.

    Args:
        classes: the number of classes.
        ignore: a label that does not count, as negative ones and NaN do not; 255 in many data sets.

    Returns:
        a metric of logits (B, classes, ...) and labels (B, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        predicted, labels = known_classes(output, target, ignore, classes)
        # One number for each pair (class, predicted class): counting them gives the confusion matrix, row by row.
        return torch.bincount(labels * classes + predicted, minlength=classes**2).double()

    def result(total: Tensor) -> float:
        confusion = total.view(classes, classes)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        check_any(union.sum())
        return 100 * float((hits[union > 0] / union[union > 0]).mean())

    return Metric("mean IoU %", True, sums, result, constant=majority_class(ignore, classes))


def rmse(unit: str = "", *, ignore: float | None = None) -> Metric:
    """Root of the mean squared difference.

    Args:
        unit: for the metric's name.
        ignore: a target that does not count, as NaN does not; 0 in many depth maps.

    Returns:
        a metric of outputs and targets of one shape; (B,) and (B, 1) are one.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted, known = known_values(output, target, ignore)
        return pair((found - wanted).square().sum(), known.sum())

    name = f"RMSE {unit}".strip()
    return Metric(name, False, sums, lambda total: ratio(total) ** 0.5, constant=channel_constant(mean, ignore))


def mean_absolute_error(unit: str = "", *, ignore: float | None = None) -> Metric:
    """Mean absolute difference.

    Args:
        unit: for the metric's name.
        ignore: a target that does not count, as NaN does not.

    Returns:
        a metric of outputs and targets of one shape; (B,) and (B, 1) are one.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted, known = known_values(output, target, ignore)
        return pair((found - wanted).abs().sum(), known.sum())

    return Metric(f"MAE {unit}".strip(), False, sums, ratio, constant=channel_constant(median, ignore))


def explained_variance(*, ignore: float | None = None) -> Metric:
    """Share of the target's variance (around its mean for each channel) that the output explains; in percent.

    Args:
        ignore: a target that does not count, as NaN does not.

    Returns:
        a metric of outputs and targets (B, C, ...), or (B,), which is (B, 1).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted, known = map(channels_last_rows, known_values(output, target, ignore))
        error = (found - wanted).square().sum().view(1)
        return torch.cat([error, known.double().sum(0), wanted.sum(0), wanted.square().sum(0)])

    def result(total: Tensor) -> float:
        count, first, second = total[1:].chunk(3)
        check_any(count.sum())
        spread = (second - first.square() / count.clamp_min(1)).sum()
        if spread <= _LOST * second.sum():
            raise TrainingError(
                f"the targets do not vary over {int(count.max())} samples; expected some variance to explain"
            )
        return 100 * float(1 - total[0] / spread)

    return Metric("explained variance %", True, sums, result, constant=channel_constant(mean, ignore))


def r_squared(*, ignore: float | None = None) -> Metric:
    """Coefficient of determination R², the mean over channels: 1 for equal outputs, 0 for each channel's mean.

    `explained_variance` is the same in percent, with channels weighted by their variance. Channels whose targets do not
    vary do not count.

    Args:
        ignore: a target that does not count, as NaN does not.

    Returns:
        a metric of outputs and targets (B, C, ...), or (B,), which is (B, 1).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted, known = map(channels_last_rows, known_values(output, target, ignore))
        errors = (found - wanted).square().sum(0)
        return torch.cat([errors, known.double().sum(0), wanted.sum(0), wanted.square().sum(0)])

    def result(total: Tensor) -> float:
        errors, count, first, second = total.chunk(4)
        check_any(count.sum())
        spread = second - first.square() / count.clamp_min(1)
        varying = spread > _LOST * second
        if not bool(varying.any()):
            raise TrainingError(
                f"the targets do not vary over {int(count.max())} samples; expected some variance to explain"
            )
        return float((1 - errors[varying] / spread[varying]).mean())

    return Metric("R²", True, sums, result, constant=channel_constant(mean, ignore))


def top1_agreement() -> Metric:
    """Share of samples on which two sets of logits have the same largest class; in percent.

    Returns:
        a metric of logits and logits (B, classes, ...); targets with NaN do not count.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_logits(output, target)
        return pair((found.argmax(1) == wanted.argmax(1)).sum(), len(wanted))

    return Metric("top-1 agreement %", True, sums, lambda total: 100 * ratio(total), constant=majority_answer())


def kl_divergence() -> Metric:
    """Mean Kullback-Leibler divergence KL(target || output) of the softmax over dimension 1, in nats.

    Returns:
        a metric of logits and logits (B, classes, ...); targets with NaN do not count.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_logits(output, target)
        shares = wanted.log_softmax(1)
        terms = shares.exp() * (shares - found.log_softmax(1))
        return pair(terms.masked_fill(shares == -torch.inf, 0).sum(), len(wanted))  # p log p is 0 where p is 0

    return Metric("KL nats", False, sums, ratio, constant=mean_distribution())
