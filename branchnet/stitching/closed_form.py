"""The affine map from one network's features to another's, in closed form.

Least squares with a ridge, `W = (Sxx + r mean(diag Sxx) I)^-1 Sxy` with centred covariances; since least squares gives
outputs of too little variance, which the layers that follow have never seen, the columns may be scaled until the
deviations match those of the target ("variance-matched"), or by the root of that factor ("half-way").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from branchnet.stitching.moments import Moments

RIDGE = 1e-3
"""Share of the mean variance of the features; between 1e-6 and 1e-2 it makes no difference on trained networks."""
LARGEST_SCALE = 5.0
"""Of a column: a channel that is hardly explained would become amplified noise."""
NO_RIDGE = 1e-11
"""For features that are affine functions of each other; above float64's rounding in sums of products."""
EXACT = 1 - 1e-6
POSITIONS_TO_TELL = 4
METHODS = {"ridge": 0.0, "half-way": 0.5, "variance-matched": 1.0}
"""The power of sd(target) / sd(mapped) that every output channel is scaled by."""
LARGEST_SIZE = 2**17
"""Numbers in a map, its bias apart: 362 channels to as many at full rank. Larger maps, which would eat up what sharing
saves, get a rank with which they hold no more, so that a search knows the size of every stitch beforehand."""
KEPT_BY_LOW_RANK = 0.99
"""Share of what a full map explains that is enough: a lower rank is taken where it keeps so much."""


@dataclass(frozen=True)
class Fit:
    """A fitted map, `y = x @ weight + bias`, float64.

    Attributes:
        weight: (C, C').
        bias: (C',).
        method: `ridge`, `half-way` or `variance-matched`.
        r2: share of the target's variance that the least-squares map explains on the positions of the fit.
        factors: `weight` as a product of (C, rank) and (rank, C'); None for a full map.
    """

    weight: Tensor
    bias: Tensor
    method: str
    r2: float
    factors: tuple[Tensor, Tensor] | None = None


def fit_maps(moments: Moments, *, ridge: float = RIDGE) -> Iterator[Fit]:
    """Fit the map of every method.

    Args:
        moments: of the features that arrive (x) and those that are expected (y).
        ridge: strength relative to the mean variance of x.

    Yields:
        one map for each of `METHODS`, in that order.
    """
    weight = _exact(moments)
    if weight is None:
        weight = least_squares(moments, ridge)
    factors = _low_rank(weight, moments)
    if factors is not None:
        weight = factors[0] @ factors[1]
    r2 = explained(weight, moments)
    spread = (weight * (moments.cov_x @ weight)).sum(0).clamp_min(0).sqrt()
    wanted = moments.var_y.clamp_min(0).sqrt()
    factor = torch.where(spread > 0, wanted / spread.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    factor = factor.clamp_max(LARGEST_SCALE)
    for method, power in METHODS.items():
        scale = factor.pow(power)
        scaled = None if factors is None else (factors[0], factors[1] * scale)
        yield Fit(weight * scale, moments.mean_y - moments.mean_x @ (weight * scale), method, r2, scaled)


def _exact(moments: Moments) -> Tensor | None:
    """The map where the target is an affine function of the source, which a ridge would spoil; None elsewhere."""
    if moments.count < POSITIONS_TO_TELL * len(moments.cov_x):
        return None  # so few positions are met by some map, whatever they are
    weight = least_squares(moments, NO_RIDGE)
    return weight if explained(weight, moments) > EXACT else None


def least_squares(moments: Moments, ridge: float = RIDGE) -> Tensor:
    """Solve for the map of least squared error with a ridge.

    Args:
        moments: of x and y.
        ridge: strength relative to the mean variance of x.

    Returns:
        W, (C, C'); zeros where x is constant.
    """
    strength = ridge * moments.cov_x.diagonal().mean()
    if strength <= 0:
        return torch.zeros_like(moments.cov_xy)
    regular = moments.cov_x + strength * torch.eye(len(moments.cov_x), dtype=torch.float64)
    weight: Tensor = torch.linalg.solve(regular, moments.cov_xy)
    return weight


def explained(weight: Tensor, moments: Moments) -> float:
    """Share of the target's variance, summed over channels, that a centred map explains.

    Args:
        weight: (C, C').
        moments: of x and y.

    Returns:
        R squared, at most 1; 0 where the target is constant.
    """
    total = float(moments.var_y.sum())
    if total <= 0:
        return 0.0
    gained = 2 * (weight * moments.cov_xy).sum() - (weight * (moments.cov_x @ weight)).sum()
    return float(gained) / total


def largest_rank(sources: int, targets: int) -> int:
    """The largest rank that a map may have: full where it holds at most `LARGEST_SIZE` numbers.

    Args:
        sources, targets: channels.

    Returns:
        the rank.
    """
    full = min(sources, targets)
    return full if sources * targets <= LARGEST_SIZE else max(1, min(full, LARGEST_SIZE // (sources + targets)))


def _low_rank(weight: Tensor, moments: Moments) -> tuple[Tensor, Tensor] | None:
    """Factors of the smallest rank that keeps what a large map explains, or of the largest rank that it may have.

    Reduced-rank regression: the map is projected on the leading principal directions of its own outputs.
    """
    sources, targets = weight.shape
    if sources * targets <= LARGEST_SIZE:
        return None
    strengths, directions = torch.linalg.eigh(weight.T @ moments.cov_x @ weight)
    kept = strengths.flip(0).clamp_min(0).cumsum(0)
    rank = min(int((kept < KEPT_BY_LOW_RANK * kept[-1]).sum()) + 1, largest_rank(sources, targets))
    leading = directions.flip(1)[:, :rank]
    return weight @ leading, leading.T.contiguous()
