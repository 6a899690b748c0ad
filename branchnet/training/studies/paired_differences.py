"""How much better one thing is than another that was trained under the same seeds, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval.

    Attributes:
        mean: the mean.
        low: the lower end; NaN where one seed and one tree leave nothing to estimate it from.
        high: the upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """The mean with the half width of its interval."""
        return f"{self.mean:+.2f} ± {'?' if math.isnan(self.low) else f'{self.high - self.mean:.2f}'}"


def crossed_estimate(differences: NDArray[np.float64]) -> Estimate:
    """Estimate the mean of differences that vary with several things, such as seeds and trees.

    Each of them is a sample of what might have been drawn: the variance of the mean is the sum, over the dimensions, of
    the variance of the means along that dimension divided by their number (crossed random effects; an upper bound, as
    each also holds a part of the rest), with Student's t and the degrees of freedom of Satterthwaite (1946). Where one
    dimension alone has several entries it is the usual interval of paired differences.

    Args:
        differences: an array with a dimension for each thing, of one entry where it does not vary.

    Returns:
        the estimate.

    >>> import numpy as np
    >>> print(crossed_estimate(np.array([[1.0], [2.0], [3.0]])))
    +2.00 ± 2.48
    """
    parts = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (
            differences.mean(tuple(other for other in range(differences.ndim) if other != axis))
            for axis in range(differences.ndim)
        )
        if len(means) > 1
    ]
    mean = float(differences.mean())
    variance = sum(part for part, _ in parts)
    if not parts:
        return Estimate(mean, math.nan, math.nan)
    if variance == 0:
        return Estimate(mean, mean, mean)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(variance))
    return Estimate(mean, mean - half, mean + half)
