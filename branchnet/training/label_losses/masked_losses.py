"""Losses for labels: means over what is labelled, so that missing labels change neither the loss nor its gradient.

All are 0, with a gradient of 0, where a batch has no label; all say what they count, see `counted_labels`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.training.label_losses.counted_labels import (
    counting,
    has_direction,
    known_answers,
    known_numbers,
    known_vectors,
)

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels of a batch to a scalar."""


def class_loss(*, ignore: int | None = None, weights: Tensor | None = None) -> Loss:
    """Cross entropy of logits (B, classes, ...) and labels (B, ...), as for classification and segmentation.

    Args:
        ignore: a label that does not count, as negative ones do not; 255 in many data sets.
        weights: of the classes, (classes,); the mean is weighted, too, as in `torch.nn.CrossEntropyLoss`.

    Returns:
        the loss.

    >>> import torch, branchnet
    >>> loss = branchnet.training.class_loss(ignore=255)
    >>> loss(torch.zeros(2, 4), torch.tensor([1, 255])).item() == torch.tensor(4.0).log().item()
    True
    """

    def is_known(labels: Tensor) -> Tensor:
        return (labels >= 0) if ignore is None else (labels >= 0) & (labels != ignore)

    def counted(target: Tensor) -> Tensor:
        labels = target.long()
        known = is_known(labels)
        return known.sum() if weights is None else (weights.to(labels.device)[labels.where(known, 0)] * known).sum()

    @counting(counted)
    def loss(output: Tensor, target: Tensor) -> Tensor:
        labels = target.long()
        scale = None if weights is None else weights.to(output)
        marked = labels.where(is_known(labels), -100)
        terms = F.cross_entropy(output, marked, scale, ignore_index=-100, reduction="none")
        return terms.sum() / _at_least_one(counted(target).to(output))

    return loss


@counting(known_numbers)
def absolute_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, as for depth.

    Args:
        output: numbers of any shape; (B,) is taken as (B, 1).
        target: numbers of the same shape; NaN is missing.

    Returns:
        the loss, a scalar.

    Raises:
        TrainingError: different shapes.
    """
    output, target, known = _values(output, target)
    return (output - target).abs().mul(known).sum() / _at_least_one(known.sum())


@counting(known_numbers)
def squared_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference.

    Args:
        output: numbers of any shape; (B,) is taken as (B, 1).
        target: numbers of the same shape; NaN is missing.

    Returns:
        the loss, a scalar.

    Raises:
        TrainingError: different shapes.
    """
    output, target, known = _values(output, target)
    return (output - target).square().mul(known).sum() / _at_least_one(known.sum())


@counting(known_vectors)
def direction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of unit vectors (B, C, ...), as for normals in Maninis et al. (2019).

    Args:
        output: vectors of any length, which are scaled to length 1.
        target: vectors; those of length 0 or with NaN are missing.

    Returns:
        the loss, a scalar.

    Raises:
        TrainingError: different shapes.
    """
    _check(output, target)
    known = has_direction(target).unsqueeze(1)
    error = (F.normalize(output, dim=1) - F.normalize(target.nan_to_num(0), dim=1)).abs()
    return error.mul(known).sum() / _at_least_one(known.sum() * output.shape[1])


@counting(known_vectors)
def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 minus the cosine between vectors (B, C, ...).

    Args:
        output: vectors of any length.
        target: vectors; those of length 0 or with NaN are missing.

    Returns:
        the loss, a scalar.

    Raises:
        TrainingError: different shapes.
    """
    _check(output, target)
    known = has_direction(target)
    return (1 - F.cosine_similarity(output, target.nan_to_num(0), dim=1)).mul(known).sum() / _at_least_one(known.sum())


def binary_loss(*, positive_weight: float | str | None = None) -> Loss:
    """Binary cross entropy of logits and targets 0 and 1 of equal shape; NaN and negative targets are missing.

    Args:
        positive_weight: None: both answers count alike. A number w between 0 and 1: yes counts w and no 1 - w.
            `"balanced"`: w is the share of no in the batch, so that both answers weigh the same in all (Xie and Tu
            2015, "Holistically-Nested Edge Detection", equation 2).

    Returns:
        the loss.

    Raises:
        TrainingError: another weight.
    """
    given = isinstance(positive_weight, int | float) and 0 < positive_weight < 1
    if positive_weight not in (None, "balanced") and not given:
        raise TrainingError(
            f"positive_weight={positive_weight!r}; expected None, 'balanced' or a number between 0 and 1"
        )

    @counting(known_answers)
    def loss(output: Tensor, target: Tensor) -> Tensor:
        known = target >= 0  # false for NaN
        output, target, _ = _values(output, torch.where(known, target.to(output), 0.0))
        terms = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        known = known.view_as(target)
        if positive_weight is not None:
            yes = 1 - target[known].mean() if positive_weight == "balanced" and bool(known.any()) else positive_weight
            weight = torch.as_tensor(0.5 if yes == "balanced" else yes).to(output)
            terms = terms * torch.where(target > 0.5, weight, 1 - weight)
        return terms.mul(known).sum() / _at_least_one(known.sum())

    return loss


def _values(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and targets of one shape, 0 where the target is missing, and where it is known."""
    output, target = (values.unsqueeze(1) if values.dim() == 1 else values for values in (output, target))
    _check(output, target)
    known = ~target.isnan()
    return output, torch.where(known, target, 0).to(output), known


def _check(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise TrainingError(
            f"outputs have shape {tuple(output.shape)} and labels {tuple(target.shape)}; expected one shape"
        )


def _at_least_one(count: Tensor) -> Tensor:
    """A divisor that is not 0 where nothing was counted."""
    return torch.where(count > 0, count, 1)
