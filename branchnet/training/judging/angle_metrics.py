"""Metrics of directions, such as surface normals: angles between vectors along dimension 1, in degrees.

The set of Eigen and Fergus (2015, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
Convolutional Architecture"): mean, median, and shares within 11.25, 22.5 and 30 degrees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.training.judging.best_constants import mean_direction
from branchnet.training.judging.known_targets import known_vectors
from branchnet.training.judging.metric import Metric, check_any, pair, ratio

RESOLUTION = 0.001
"""Degrees a bin of the histogram from which a median is read."""
_BINS = round(180 / RESOLUTION)


def mean_angle(*, ignore: float | None = None) -> Metric:
    """Mean angle between vectors along dimension 1, such as surface normals; in degrees.

    Args:
        ignore: targets all of whose components are this do not count, as those of length 0 or with NaN do not.

    Returns:
        a metric of outputs and targets (B, C, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found = _angles(output, target, ignore)
        return pair(found.sum(), found.numel())

    return Metric("mean angle °", False, sums, ratio, constant=mean_direction(ignore))


def explained_direction() -> Metric:
    """Share of 1 minus the cosine to the best constant direction that an output explains; in percent.

    `100 (1 - mean(1 - cos(output, target)) / mean(1 - cos(constant, target)))`, where the constant is the direction of
    the targets' mean: 100 for the same directions, 0 for that constant. As explained variance, but for directions.

    Returns:
        a metric of outputs and targets (B, C, ...); targets of length 0 or with NaN do not count.

    >>> import torch, branchnet
    >>> metric = branchnet.training.explained_direction()
    >>> target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> metric.result(metric.sums(2 * target, target)), round(metric.result(metric.sums(torch.ones(2, 2), target)), 4)
    (100.0, 0.0)
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = (F.normalize(values.double(), dim=1) for values in known_vectors(output, target, None))
        error = (1 - (found * wanted).sum(1)).sum()
        return torch.cat([torch.stack([error, torch.full_like(error, len(wanted))]), wanted.sum(0)])

    def result(total: Tensor) -> float:
        check_any(total[1])
        constant = float(total[1] - total[2:].norm())
        if constant <= 1e-9 * float(total[1]):
            raise TrainingError(
                f"the targets are the same direction for all {total[1]:.0f} vectors; expected some that differ"
            )
        return 100 * (1 - float(total[0]) / constant)

    return Metric("explained direction %", True, sums, result, constant=mean_direction())


def median_angle(*, ignore: float | None = None) -> Metric:
    """Median angle between vectors along dimension 1; in degrees, to within 0.001.

    It is read from a histogram of 180,000 bins, which takes the same memory for any number of pixels.

    Args:
        ignore: targets all of whose components are this do not count, as those of length 0 or with NaN do not.

    Returns:
        a metric of outputs and targets (B, C, ...).
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        bins = (_angles(output, target, ignore) / RESOLUTION).long().clamp_max(_BINS - 1)
        return torch.bincount(bins, minlength=_BINS).double()

    def result(counts: Tensor) -> float:
        below = counts.cumsum(0)
        check_any(below[-1])
        # The two middle ones, which are one for an odd number; each at its bin's centre.
        ranks = torch.stack([((below[-1] - 1) / 2).floor(), ((below[-1] - 1) / 2).ceil()])
        return RESOLUTION * float(torch.searchsorted(below, ranks, right=True).double().mean() + 0.5)

    return Metric("median angle °", False, sums, result, constant=mean_direction(ignore))


def share_within_angle(degrees: float, *, ignore: float | None = None) -> Metric:
    """Share of vectors whose angle to the target's is below a bound: 11.25, 22.5 and 30 degrees are usual; in percent.

    Args:
        degrees: the bound.
        ignore: targets all of whose components are this do not count, as those of length 0 or with NaN do not.

    Returns:
        a metric of outputs and targets (B, C, ...).

    Raises:
        TrainingError: a bound that is not between 0 and 180.
    """
    if not 0 < degrees <= 180:
        raise TrainingError(f"degrees={degrees}; expected an angle above 0 and at most 180")

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found = _angles(output, target, ignore)
        return pair((found < degrees).sum(), found.numel())

    name = f"within {degrees:g}° %"
    return Metric(name, True, sums, lambda total: 100 * ratio(total), constant=mean_direction(ignore))


def _angles(output: Tensor, target: Tensor, ignore: float | None) -> Tensor:
    found, wanted = known_vectors(output, target, ignore)
    return torch.rad2deg(torch.acos(F.cosine_similarity(found, wanted, dim=1).clamp(-1, 1)))
