"""Metrics as streams of sums: each batch adds to a vector, the vector gives the number at the end.

So a metric over a whole data set is exact (a mean IoU is not the mean of batch IoUs) and needs no memory for outputs.

Targets may be missing: NaN in what is measured, negative numbers in classes, the value `ignore` in both. They do not
count; where nothing is left, there is no metric, but an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.stitching.output_distances import channels_last_rows
from branchnet.training.judging.known_targets import known_classes, known_logits, known_values, known_vectors

_LOST = 1e-13
"""Share of a sum of squares below which a variance, their difference from another sum, is rounding error."""


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


def accuracy(*, ignore: int | None = None) -> Metric:
    """Share of samples (or pixels) whose largest logit, along dimension 1, is the target's class; in percent.

    Args:
        ignore: a label that does not count, as negative ones and NaN do not.

    Returns:
        a metric of logits (B, classes, ...) and labels (B, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        predicted, labels = known_classes(output, target, ignore)
        return _pair((predicted == labels).sum(), labels.numel())

    return Metric("accuracy %", True, sums, lambda total: 100 * _ratio(total))


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
        _check_any(union.sum())
        return 100 * float((hits[union > 0] / union[union > 0]).mean())

    return Metric("mean IoU %", True, sums, result)


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
        return _pair((found - wanted).square().sum(), known.sum())

    return Metric(f"RMSE {unit}".strip(), False, sums, lambda total: _ratio(total) ** 0.5)


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
        return _pair((found - wanted).abs().sum(), known.sum())

    return Metric(f"MAE {unit}".strip(), False, sums, _ratio)


def mean_angle(*, ignore: float | None = None) -> Metric:
    """Mean angle between vectors along dimension 1, such as surface normals; in degrees.

    Args:
        ignore: targets all of whose components are this do not count, as those of length 0 or with NaN do not.

    Returns:
        a metric of outputs and targets (B, C, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_vectors(output, target, ignore)
        cosine = F.cosine_similarity(found, wanted, dim=1).clamp(-1, 1)
        return _pair(torch.rad2deg(torch.acos(cosine)).sum(), cosine.numel())

    return Metric("mean angle °", False, sums, _ratio)


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
        _check_any(count.sum())
        spread = (second - first.square() / count.clamp_min(1)).sum()
        if spread <= _LOST * second.sum():
            raise TrainingError(
                f"the targets do not vary over {int(count.max())} samples; expected some variance to explain"
            )
        return 100 * float(1 - total[0] / spread)

    return Metric("explained variance %", True, sums, result)


def top1_agreement() -> Metric:
    """Share of samples on which two sets of logits have the same largest class; in percent.

    Returns:
        a metric of logits and logits (B, classes, ...); targets with NaN do not count.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_logits(output, target)
        return _pair((found.argmax(1) == wanted.argmax(1)).sum(), len(wanted))

    return Metric("top-1 agreement %", True, sums, lambda total: 100 * _ratio(total))


def kl_divergence() -> Metric:
    """Mean Kullback-Leibler divergence KL(target || output) of the softmax over dimension 1, in nats.

    Returns:
        a metric of logits and logits (B, classes, ...); targets with NaN do not count.
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_logits(output, target)
        shares = wanted.log_softmax(1)
        terms = shares.exp() * (shares - found.log_softmax(1))
        return _pair(terms.masked_fill(shares == -torch.inf, 0).sum(), len(wanted))  # p log p is 0 where p is 0

    return Metric("KL nats", False, sums, _ratio)


def _pair(total: Tensor, count: Tensor | int) -> Tensor:
    return torch.stack([total.double(), torch.as_tensor(count, dtype=torch.float64, device=total.device)])


def _ratio(total: Tensor) -> float:
    _check_any(total[1])
    return float(total[0] / total[1])


def _check_any(count: Tensor) -> None:
    if not count:
        raise TrainingError("every target is missing; expected some that are known")
