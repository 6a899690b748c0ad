"""How many labels the mean of a loss is over: pixels without a label do not count, so batches hold different numbers.

Batches that are accumulated, or divided over processes, are weighed by it, so that they give the loss and the gradient
of one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable[..., Any])
Count = Callable[[Tensor], Tensor]
"""From the labels of a batch to a scalar."""


def counting(count: Count | None) -> Callable[[Function], Function]:
    """Mark a loss as the mean over some labels of a batch.

    Args:
        count: how many, or what they weigh in all; None leaves the loss as it is.

    Returns:
        a decorator.
    """

    def mark(loss: Function) -> Function:
        if count is not None:
            loss.counted = count  # type: ignore[attr-defined]
        return loss

    return mark


def counted_labels(loss: Any, labels: Any, samples: int) -> float:
    """How many labels the mean of a loss is over.

    Args:
        loss: ours, or `CrossEntropyLoss` and `NLLLoss` of torch with whatever they ignore; others are taken as means
            over samples.
        labels: of a batch.
        samples: how many have some.
    """
    count = getattr(loss, "counted", None)
    if count is None and isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.reduction == "mean":
        return _of_classes(loss, labels, samples)
    if count is None or not isinstance(labels, Tensor):
        return float(samples)
    return float(count(labels))


def _of_classes(loss: Any, labels: Any, samples: int) -> float:
    if not isinstance(labels, Tensor) or labels.is_floating_point():  # probabilities: a mean over samples
        return float(samples)
    known = labels != loss.ignore_index
    if loss.weight is None:
        return float(known.sum())
    return float((loss.weight.to(labels.device)[torch.where(known, labels, 0)] * known).sum())


def known_numbers(labels: Tensor) -> Tensor:
    """How many numbers are not NaN.

    Args:
        labels: of any shape.
    """
    return (~labels.isnan()).sum()


def known_vectors(labels: Tensor) -> Tensor:
    """How many vectors (B, C, ...) have a length and no NaN.

    Args:
        labels: the vectors.
    """
    return has_direction(labels).sum()


def has_direction(labels: Tensor) -> Tensor:
    """Where vectors (B, C, ...) have a length and no NaN, (B, ...).

    Args:
        labels: the vectors.
    """
    return (labels.nan_to_num(0) != 0).any(1) & ~labels.isnan().any(1)


def known_answers(labels: Tensor) -> Tensor:
    """How many answers, yes or no, are neither NaN nor negative.

    Args:
        labels: of any shape.
    """
    return (labels >= 0).sum()
