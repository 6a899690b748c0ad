"""Errors of depth that count relative to the depth: of Eigen, Puhrsch and Fergus (2014, "Depth Map Prediction from a
Single Image using a Multi-Scale Deep Network"), and the mean log10 error of Liu, Shen and Lin (2015).

A target of 0 or less is missing, as NaN is. Where a logarithm is taken, outputs below `LEAST` count as that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from branchnet.training.judging.best_constants import (
    ChannelStatistic,
    channel_constant,
    geometric_mean,
    inverse_weighted_median,
    median,
)
from branchnet.training.judging.known_targets import known_values
from branchnet.training.judging.metric import Metric, pair, ratio

LEAST = 1e-6


def absolute_relative_error(*, ignore: float | None = None) -> Metric:
    """Mean of `|output - target| / target`; in percent.

    Args:
        ignore: a further target that does not count.

    Returns:
        a metric of outputs and targets of one shape; (B,) and (B, 1) are one.
    """
    return _depth_metric(
        "abs. relative error %",
        lambda found, wanted: (found - wanted).abs() / wanted,
        lambda total: 100 * ratio(total),
        inverse_weighted_median,
        ignore,
    )


def log10_error(*, ignore: float | None = None) -> Metric:
    """Mean of `|log10(output) - log10(target)|`.

    Args:
        ignore: a further target that does not count.

    Returns:
        a metric of outputs and targets of one shape; (B,) and (B, 1) are one.
    """
    return _depth_metric(
        "log10 error",
        lambda found, wanted: (found.clamp_min(LEAST).log10() - wanted.log10()).abs(),
        ratio,
        median,
        ignore,
    )


def log_rmse(*, ignore: float | None = None) -> Metric:
    """Root of the mean squared difference of natural logarithms.

    Args:
        ignore: a further target that does not count.

    Returns:
        a metric of outputs and targets of one shape; (B,) and (B, 1) are one.
    """
    return _depth_metric(
        "log RMSE",
        lambda found, wanted: (found.clamp_min(LEAST).log() - wanted.log()).square(),
        lambda total: ratio(total) ** 0.5,
        geometric_mean,
        ignore,
    )


def _depth_metric(
    name: str,
    error: Callable[[Tensor, Tensor], Tensor],
    result: Callable[[Tensor], float],
    statistic: ChannelStatistic,
    ignore: float | None,
) -> Metric:
    def sums(output: Tensor, target: Tensor) -> Tensor:
        depths = torch.where(target > 0, target, torch.nan)
        found, wanted, known = known_values(output, depths, ignore)
        return pair(error(found[known], wanted[known]).sum(), known.sum())

    return Metric(name, False, sums, result, constant=channel_constant(statistic, ignore, above=0.0))
