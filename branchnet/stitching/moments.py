"""First and second moments of paired features, accumulated batch by batch in float64.

Nothing but sums is kept, so the features of a probe never have to be in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of x (n, C) and y (n, C'), float64, on the CPU.

    Attributes:
        count: n, the number of positions.
        mean_x: (C,).
        mean_y: (C',).
        cov_x: (C, C), covariance of x.
        cov_xy: (C, C'), covariance of x and y.
        var_y: (C',), variances of y.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    cov_x: Tensor
    cov_xy: Tensor
    var_y: Tensor


class MomentSums:
    """Running sums over M sources of features at the same positions, of which every pair gives its `Moments`."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: list[Tensor] = []
        self._first: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._second: dict[tuple[int, int], Tensor] = {}

    def add(self, rows: list[Tensor], pairs: list[tuple[int, int]]) -> None:
        """Add positions.

        Args:
            rows: for each source its features at the same positions, (n, channels of the source).
            pairs: the pairs (i, j) of sources, i <= j, whose products are wanted; (i, i) where i is to be mapped. The
                same at every call.
        """
        wide = [source.detach().double() for source in rows]
        if not self._shift:  # moments about the first batch's mean: sums of squares of a large offset would cancel
            self._shift = [source.mean(0) for source in wide]
            self._first = [torch.zeros_like(shift) for shift in self._shift]
            self._squares = [torch.zeros_like(shift) for shift in self._shift]
        centred = [source - shift for source, shift in zip(wide, self._shift, strict=True)]
        self.count += len(centred[0])
        for first, squares, source in zip(self._first, self._squares, centred, strict=True):
            first += source.sum(0)
            squares += source.square().sum(0)
        for i, j in pairs:
            product = centred[i].T @ centred[j]
            self._second[i, j] = self._second[i, j] + product if (i, j) in self._second else product

    def merge(self, other: MomentSums) -> None:
        """Add what other sums of the same sources and pairs hold, over other positions.

        Args:
            other: the other sums.
        """
        if not other.count:
            return
        if not self.count:
            self.count, self._shift, self._first = other.count, list(other._shift), list(other._first)
            self._squares, self._second = list(other._squares), dict(other._second)
            return
        place = self._shift[0].device
        moved = [theirs.to(place) - own for theirs, own in zip(other._shift, self._shift, strict=True)]
        firsts = [first.to(place) for first in other._first]
        for (i, j), second in other._second.items():
            about_own = second.to(place) + torch.outer(firsts[i], moved[j]) + torch.outer(moved[i], firsts[j])
            self._second[i, j] = self._second[i, j] + about_own + other.count * torch.outer(moved[i], moved[j])
        self._squares = [
            own + squares.to(place) + 2 * first * shift + other.count * shift.square()
            for own, squares, first, shift in zip(self._squares, other._squares, firsts, moved, strict=True)
        ]
        self._first = [
            own + first + other.count * shift for own, first, shift in zip(self._first, firsts, moved, strict=True)
        ]
        self.count += other.count

    def moments(self, i: int, j: int) -> Moments:
        """Return the moments of x from source i and y from source j.

        Args:
            i: number of the source that is mapped.
            j: number of the source that it is mapped to.

        Returns:
            means and covariances.
        """
        means = [first / self.count for first in self._first]
        return Moments(
            self.count,
            (self._shift[i] + means[i]).cpu(),
            (self._shift[j] + means[j]).cpu(),
            self._covariance(i, i, means),
            self._covariance(i, j, means),
            (self._squares[j] / self.count - means[j].square()).cpu(),
        )

    def _covariance(self, i: int, j: int, means: list[Tensor]) -> Tensor:
        second = self._second[i, j] if (i, j) in self._second else self._second[j, i].T
        return (second / self.count - torch.outer(means[i], means[j])).cpu()
