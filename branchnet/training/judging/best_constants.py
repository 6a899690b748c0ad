"""The constant answer that is best under a metric: the majority class, the mean, the median, the mean direction.

An answer is fitted on rows: class labels (n,), or values (n, C) with one channel a column, NaN where one is missing. It
is turned into an output of the form that the metric takes, the same for every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.stitching.output_distances import channels_last_rows

CERTAIN = 40.0
"""A logit whose sigmoid or softmax is 1 to the last digit of float32."""

ChannelStatistic: TypeAlias = Callable[[Tensor], Tensor]
"""From the known values of one channel, (n,), at least one, to a number."""


@dataclass(frozen=True)
class BestConstant:
    """How the best constant answer under a metric is found and given.

    Attributes:
        rows: from a batch of targets to rows.
        answer: from the rows of all targets to the answer, a class () or values (C,).
        output: from the answer and a batch of targets to an output for that batch.
        exact: whether no constant is better on the targets that it is fitted on; otherwise it is close to the best.
    """

    rows: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor]
    exact: bool = True


def majority_class(ignore: int | None = None, classes: int | None = None) -> BestConstant:
    """The most frequent class of labels (B, ...); ties go to the smaller one.

    Args:
        ignore: a label that does not count, as negative ones and NaN do not.
        classes: how many logits an output has; None: as many as the labels need, and two at least.
    """

    def answer(labels: Tensor) -> Tensor:
        known = (labels >= 0) if ignore is None else (labels >= 0) & (labels != ignore)
        _check_known(known)
        numbers = labels[known].long()
        if labels.is_floating_point() and not bool((numbers == labels[known]).all()):
            raise TrainingError(f"labels are {labels.dtype} and no whole numbers; expected classes, and not outputs")
        return torch.bincount(numbers).argmax()

    def output(majority: Tensor, target: Tensor) -> Tensor:
        known = target if ignore is None else target.where(target != ignore, 0)
        largest = int(known.nan_to_num(0).max()) if target.is_floating_point() else int(known.max())
        logits = torch.zeros(len(target), classes or max(2, int(majority) + 1, largest + 1), *target.shape[1:])
        logits[:, int(majority)] = CERTAIN
        return logits.to(target.device)

    return BestConstant(torch.flatten, answer, output)


def majority_answer() -> BestConstant:
    """The class that is most often the largest of target logits (B, C, ...)."""

    def answer(rows: Tensor) -> Tensor:
        known = rows[~rows.isnan().any(1)]
        _check_known(known)
        counts = torch.bincount(known.argmax(1), minlength=rows.shape[1])
        return CERTAIN * torch.nn.functional.one_hot(counts.argmax(), rows.shape[1]).double()

    return BestConstant(channels_last_rows, answer, _spread)


def mean_distribution() -> BestConstant:
    """The logarithm of the mean softmax of target logits (B, C, ...): no constant has a smaller KL divergence."""

    def answer(rows: Tensor) -> Tensor:
        known = rows[~rows.isnan().any(1)]
        _check_known(known)
        return known.double().softmax(1).mean(0).clamp_min(1e-12).log()

    return BestConstant(channels_last_rows, answer, _spread)


def mean_direction(ignore: float | None = None) -> BestConstant:
    """The mean of unit vectors (B, C, ...), scaled to length 1: best for the mean cosine, and close for angles.

    Args:
        ignore: targets all of whose components are this do not count, as those of length 0 or with NaN do not.
    """

    def answer(rows: Tensor) -> Tensor:
        known = ~rows.isnan().any(1) & (rows != 0).any(1)
        if ignore is not None:
            known = known & (rows != ignore).any(1)
        _check_known(known)
        mean = torch.nn.functional.normalize(rows[known].double(), dim=1).mean(0)
        ahead = torch.zeros_like(mean)
        ahead[-1] = 1.0
        return mean / mean.norm() if mean.norm() > 1e-9 else ahead  # directions that cancel: any is as good

    return BestConstant(channels_last_rows, answer, _spread, exact=False)


def channel_constant(
    statistic: ChannelStatistic, ignore: float | None = None, *, above: float | None = None
) -> BestConstant:
    """A statistic of each channel of targets (B, C, ...), or (B,).

    Args:
        statistic: of the known values of a channel.
        ignore: a value that does not count, as NaN does not.
        above: values that are not larger do not count.
    """

    def answer(rows: Tensor) -> Tensor:
        known = ~rows.isnan()
        if ignore is not None:
            known = known & (rows != ignore)
        if above is not None:
            known = known & (rows > above)
        _check_known(known)
        columns = [rows[known[:, channel], channel].double() for channel in range(rows.shape[1])]
        return torch.stack([statistic(column) if len(column) else column.new_zeros(()) for column in columns])

    return BestConstant(channels_last_rows, answer, _spread)


def mean(values: Tensor) -> Tensor:
    """Least squared error."""
    return values.mean()


def median(values: Tensor) -> Tensor:
    """Least absolute error."""
    return values.quantile(0.5) if len(values) < 2**24 else values.median()  # quantile refuses larger ones


def geometric_mean(values: Tensor) -> Tensor:
    """Least squared error of logarithms, of values above 0."""
    return values.log().mean().exp()


def inverse_weighted_median(values: Tensor) -> Tensor:
    """Least absolute error relative to each value, of values above 0: the median weighted by 1 / value."""
    ordered = values.sort().values
    weights = (1 / ordered).cumsum(0)
    return ordered[torch.searchsorted(weights, weights[-1] / 2)]


def same_score(logit: float) -> BestConstant:
    """The same logit everywhere.

    For rankings all constants are equal. Where thresholds are tried, 0 is "yes" at the lower half of them and "no" at
    the upper one, so that the better of the two is found.

    Args:
        logit: what is answered.
    """

    def output(answer: Tensor, target: Tensor) -> Tensor:
        return torch.full(target.shape, float(answer), dtype=torch.float64, device=target.device)

    return BestConstant(torch.flatten, lambda rows: torch.tensor(logit, dtype=torch.float64), output)


def by_type(classes: int | None = None) -> BestConstant:
    """For metrics of which nothing is known: the majority class of integer labels, the mean of numbers.

    Args:
        classes: how many logits an output has.
    """
    labels, numbers = majority_class(classes=classes), channel_constant(mean)

    def of(target: Tensor) -> BestConstant:
        return numbers if target.is_floating_point() else labels

    return BestConstant(
        lambda target: of(target).rows(target),
        lambda rows: of(rows).answer(rows),
        lambda answer, target: of(target).output(answer, target),
        exact=False,
    )


def _spread(answer: Tensor, target: Tensor) -> Tensor:
    """`answer`, one value a channel, as an output of the target's form."""
    shape = (1, -1, *(1,) * (target.dim() - 2))
    values = answer.to(target.device)
    return (values if target.dim() == 1 else values.view(shape)).expand(target.shape)


def _check_known(known: Tensor) -> None:
    if not len(known) or (known.dtype == torch.bool and not bool(known.any())):
        raise TrainingError("every label is missing; expected some that are known, to fit a constant answer on")
