"""Metrics of yes against no: rankings of samples (ROC, precision and recall), edges, salient regions.

Outputs are logits: (B, ...) of any shape that the target has, or (B, 2, ...), logits of no and yes, for targets
(B, ...). Targets are 0 and 1; NaN and negative ones are missing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.stitching.output_distances import channels_last_rows
from branchnet.training.judging.best_constants import same_score
from branchnet.training.judging.known_targets import known_answers
from branchnet.training.judging.metric import Metric, check_any

THRESHOLDS = 99
"""Probabilities 0.01, 0.02, ... 0.99 at which edges are cut, as in the BSDS benchmark."""
SALIENCY_THRESHOLDS = (0.2, 0.9, 15)
"""First, last and number of the probabilities at which salient regions are cut (Maninis et al. 2019)."""


def area_under_roc() -> Metric:
    """Area under the ROC curve: how often a positive sample has a larger logit than a negative one; in percent.

    With several channels the mean over those in which both answers occur, as is usual for molecules (MoleculeNet).
    All logits are kept until the end.

    Returns:
        a metric of logits and targets as in this module: (B, C) of C questions, or (B, 2) of one.
    """
    return _ranking("AUROC %", _roc)


def average_precision() -> Metric:
    """Mean precision over recall, a step at each distinct logit, not interpolated, as in scikit-learn; in percent.

    With several channels the mean over those in which both answers occur. All logits are kept until the end.

    Returns:
        a metric of logits and targets as in this module: (B, C) of C questions, or (B, 2) of one.
    """
    return _ranking("average precision %", _precision)


def edge_f_score(*, tolerance: int = 0) -> Metric:
    """Largest F over thresholds, one threshold for the whole set (the ODS-F of edges); in percent.

    Neither the thinning of predicted edges nor the one-to-one matching of the BSDS benchmark (Martin, Fowlkes and Malik
    2004) is done: numbers compare with each other and not with published ones. With a tolerance a predicted edge counts
    as right where a true one is within that many pixels, in rows and columns, and a true one as found likewise.

    Args:
        tolerance: in pixels.

    Returns:
        a metric of logits and targets (B, 1, H, W); without a tolerance of any shape.

    Raises:
        TrainingError: a tolerance below 0.
    """
    if tolerance < 0:
        raise TrainingError(f"tolerance={tolerance}; expected 0 pixels or more")
    thresholds = torch.arange(1, THRESHOLDS + 1, dtype=torch.float64) / (THRESHOLDS + 1)

    def sums(output: Tensor, target: Tensor) -> Tensor:
        logits, truth, known = known_answers(output, target)
        scores = logits.sigmoid().masked_fill(~known, -1.0)
        near, reached = _grown(truth.double(), tolerance) > 0, _grown(scores, tolerance)
        cut = thresholds.to(scores.device)
        # At how many thresholds a pixel is an edge: counts of that give the counts at every threshold at once.
        predicted = [_at_least(scores[which], cut) for which in (known, known & near)]
        return torch.cat([*predicted, _at_least(reached[truth], cut), truth.sum().double().view(1)])

    def result(total: Tensor) -> float:
        predicted, right, found = total[:-1].chunk(3)
        check_any(total.sum())
        precision, recall = right / predicted.clamp_min(1), found / total[-1].clamp_min(1)
        return 100 * float((2 * precision * recall / (precision + recall).clamp_min(1e-12)).max())

    return Metric("edge F %", True, sums, result, constant=same_score(0.0))


def saliency_iou() -> Metric:
    """Largest over thresholds of the mean over images of intersection over union with the salient region; in percent.

    The `mIoU` of Maninis et al. (2019, "Attentive Single-Tasking of Multiple Tasks"): probabilities 0.2, 0.25, ... 0.9.
    An image without a salient pixel counts 1 where none is predicted.

    Returns:
        a metric of logits and targets (B, 1, H, W).
    """
    first, last, number = SALIENCY_THRESHOLDS
    thresholds = torch.linspace(first, last, number, dtype=torch.float64)

    def sums(output: Tensor, target: Tensor) -> Tensor:
        logits, truth, known = (values.flatten(1) for values in known_answers(output, target))
        above = logits.sigmoid()[..., None] > thresholds.to(logits.device)
        above &= known[..., None]
        both = (above & truth[..., None]).sum(1).double()
        either = (above | truth[..., None]).sum(1).double()
        overlap = torch.where(either > 0, both / either.clamp_min(1), 1.0)
        seen = known.any(1)
        return torch.cat([overlap[seen].sum(0), seen.sum().double().view(1)])

    def result(total: Tensor) -> float:
        check_any(total[-1])
        return 100 * float((total[:-1] / total[-1]).max())

    return Metric("saliency IoU %", True, sums, result, constant=same_score(0.0))


def _ranking(name: str, measure: Callable[[Tensor, Tensor], float]) -> Metric:
    def sums(output: Tensor, target: Tensor) -> Tensor:
        logits, truth, known = map(channels_last_rows, known_answers(output, target))
        return torch.cat([logits, truth.double().masked_fill(~known, torch.nan)], 1)

    def result(rows: Tensor) -> float:
        logits, answers = rows.chunk(2, 1)
        check_any((~answers.isnan()).sum())
        values = []
        for column, answer in zip(logits.T, answers.T, strict=True):
            known = ~answer.isnan()
            if len(answer[known].unique()) == 2:
                values.append(measure(column[known], answer[known] > 0))
        if not values:
            raise TrainingError("all targets are equal; expected some that are 0 and some that are 1")
        return 100 * sum(values) / len(values)

    return Metric(name, True, sums, result, keeps_rows=True, constant=same_score(0.0))


def _roc(scores: Tensor, positive: Tensor) -> float:
    """By the positives' average ranks (the Mann-Whitney statistic)."""
    _, group, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[group]
    yes = int(positive.sum())
    no = len(positive) - yes
    return float(ranks[positive].double().sum() - yes * (yes + 1) / 2) / (yes * no)


def _precision(scores: Tensor, positive: Tensor) -> float:
    values, group = scores.unique(return_inverse=True)
    hits = torch.bincount(group[positive], minlength=len(values)).flip(0).double()
    found = torch.bincount(group, minlength=len(values)).flip(0).double()
    precision = hits.cumsum(0) / found.cumsum(0)
    return float((precision * hits).sum() / hits.sum())


def _grown(values: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` pixels."""
    return F.max_pool2d(values, 2 * radius + 1, stride=1, padding=radius) if radius else values


def _at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores are at or above each threshold."""
    reached = torch.bucketize(scores, thresholds, right=True)
    return torch.bincount(reached, minlength=len(thresholds) + 1).double().flip(0).cumsum(0).flip(0)[1:]
