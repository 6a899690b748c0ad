"""A tighter lower bound for objectives that are sums over pairs: what the simple bound relaxes gets a price.

In the simple bound every task chooses its own partners at every stage. Two families of multipliers make the choices
agree; the bound is valid for any values of them, and a subgradient method looks for good ones:

- a pair's loss may be split unevenly between its two tasks (they must choose each other);
- a partner at stage d + 1 must be a partner at stage d; breaking that costs at d + 1 what keeping it earns at d.

A task that chooses s - 1 partners at a stage pays the s - 1 smallest of its priced losses, for every s; the number of
clusters, sum over tasks of 1 / s, has a multiplier for each stage as in the simple bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.constraints import Rules
from branchnet.clustering.objectives import StageLosses
from branchnet.clustering.widths import relaxed_widths

Floats = npt.NDArray[np.float64]
_ROUNDS = 150
_LARGEST = 60
_PATIENCE = 8


def pair_bound(losses: StageLosses, rules: Rules, sizes: Floats, limit: float, target: float) -> float:
    """A lower bound on the cost of every tree that fits, for the kinds `mean` and `sum`; -inf for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`.
        target: cost of a known tree; it only sets the length of steps.
    """
    depth, n = losses.pairs.shape[:2]
    if n > _LARGEST or n < 2:
        return -np.inf
    pairs = losses.pairs / losses.divisor
    uneven, nested = np.zeros_like(pairs), np.zeros((depth + 1, n, n))
    best, length, idle = -np.inf, 1.0, 0
    for _ in range(_ROUNDS):
        stages = [_Stage(pairs[d] + uneven[d], nested[d] - nested[d + 1], losses.kind) for d in range(depth)]
        table = np.array([_allowed(stage.bounds(), rules, d) for d, stage in enumerate(stages)])
        value, widths = relaxed_widths(table, sizes, limit)
        if not np.isfinite(value) or value >= target:
            return max(best, value) + losses.offset
        best, idle = (value, 0) if value > best + 1e-6 * abs(value) else (max(best, value), idle + 1)
        if idle == _PATIENCE:
            length, idle = length / 2, 0
        chosen = [stage.choice(width) for stage, width in zip(stages, widths, strict=True)]
        shares = np.array([share for share, _ in chosen])
        partners = np.array([partner for _, partner in chosen]).astype(float)
        up_uneven = shares - shares.transpose(0, 2, 1)
        up_nested = partners[1:] - partners[:-1]
        norm = float((up_uneven**2).sum() / 2 + (up_nested**2).sum())
        if norm == 0.0:
            break
        step = length * (target - value) / norm
        uneven += step * up_uneven / 2
        nested[1:depth] = np.maximum(nested[1:depth] + step * up_nested, 0.0)
    return best + losses.offset


def _allowed(bounds: Floats, rules: Rules, stage: int) -> Floats:
    widths = np.arange(len(bounds))
    return np.where((widths < rules.min_width[stage]) | (widths > rules.max_width[stage]), np.inf, bounds)


@dataclass(eq=False)
class _Stage:
    """One stage's priced choices: `losses[i, j]` is what i pays for j, `prices[i, j]` what nesting adds."""

    losses: Floats
    prices: Floats
    kind: str

    def __post_init__(self) -> None:
        n = len(self.losses)
        sizes = np.arange(1, n + 1)
        self._weights = 1.0 / np.maximum(sizes - 1, 1) if self.kind == "mean" else np.full(n, 0.5)
        priced = self._weights[:, None, None] * self.losses + self.prices
        priced[:, np.arange(n), np.arange(n)] = np.inf
        sums = np.cumsum(np.sort(priced, axis=2)[:, :, : n - 1], axis=2)
        self._paid = np.zeros((n, n))
        for size in range(2, n + 1):
            self._paid[:, size - 1] = sums[size - 1, :, size - 2]
        spread = max(float(np.abs(self._paid).max()), 1e-300)
        self._slopes = np.concatenate([[0.0], spread * np.geomspace(1e-4, 10.0 * n, 120)])
        self._priced = priced

    def bounds(self) -> Floats:
        """For every width 0..N a lower bound on the stage's cost; width 0 is inf."""
        n = len(self.losses)
        sizes = np.arange(1, n + 1)
        lines = (self._paid[None] + self._slopes[:, None, None] / sizes).min(axis=2).sum(axis=1)
        self._lines = lines[:, None] - self._slopes[:, None] * sizes
        bounds: Floats = np.full(n + 1, np.inf)
        bounds[1:] = self._lines.max(axis=0)
        return bounds

    def choice(self, width: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The shares that each task pays of each loss, and its partners, at the best multiplier for `width`."""
        n = len(self.losses)
        slope = self._slopes[self._lines[:, width - 1].argmax()]
        sizes = 1 + (self._paid + slope / np.arange(1, n + 1)).argmin(axis=1)
        order = np.argsort(self._priced[sizes - 1, np.arange(n)], axis=1)
        partners = np.zeros((n, n), np.bool_)
        np.put_along_axis(partners, order, np.arange(n)[None] < (sizes - 1)[:, None], axis=1)
        return partners * self._weights[sizes - 1][:, None], partners
