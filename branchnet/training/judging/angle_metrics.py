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
