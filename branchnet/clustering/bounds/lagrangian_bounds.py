"""A tighter lower bound for objectives that are sums over pairs, by Lagrangian relaxation.

A partition is two things at once. Row by row, each task picks the size s of its cluster and its s - 1 partners. As a
whole, the matrix Z with Z[i, j] = 1 / s for tasks of one cluster is the projection onto the clusters' indicators (Peng
and Wei 2007, "Approximating k-means-type clustering via semidefinite programming"): its trace is the number of clusters
and its rows sum to 1. One stage refines another exactly if its Z is larger as a semidefinite matrix. What ties these
views together is relaxed, each with multipliers:

- `rows`: the Z of the tasks' choices is the projection;
- `order`: the projections of neighbouring stages are ordered (semidefinite multipliers);
- `shares`: two tasks pay the same share of their pair's loss; `mutual`: a task is the partner of its partners;
- `nested`: partners at a stage are partners at the stage before.

What is left is solved exactly for any values of the multipliers: each task's cheapest choice by sorting, and for every
number k of clusters the least trace product with a projection of rank k, which is a sum of smallest eigenvalues (Ky
Fan); then the widths are chosen within the budget. So every value is a valid bound. A subgradient method with averaged
directions looks for good ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
# A step takes eigenvalues of D matrices and sorts D * N^3 numbers.
_LARGEST = 60
# How much of the last direction is kept, the first length of steps, after how many steps without progress it is halved,
# and what counts as progress (relative). Any multipliers give a valid bound; these decide only how fast it rises.
_MEMORY, _LENGTH, _PATIENCE, _PROGRESS = 0.8, 0.3, 12, 2e-4
_PARTNER_STEP = 0.01


@dataclass(frozen=True, eq=False)
class _Multipliers:
    """(D, N, N) each; those of neighbouring stages (D - 1, N, N)."""

    rows: Floats
    order: Floats
    shares: Floats
    mutual: Floats
    nested: Floats

    def moved(self, way: _Multipliers, step: float) -> _Multipliers:
        """A step; partners are 0 or 1 where shares and projections are about 1 / s, so their steps are shorter."""
        small = _PARTNER_STEP * step
        return _Multipliers(
            self.rows + step * way.rows,
            _semidefinite(self.order + step * way.order),
            self.shares + step * way.shares,
            self.mutual + small * way.mutual,
            np.maximum(self.nested + small * way.nested, 0.0),
        )

    def mixed(self, other: _Multipliers, share: float) -> _Multipliers:
        return _Multipliers(*(share * a + (1 - share) * b for a, b in zip(self._all(), other._all(), strict=True)))

    def norm(self) -> float:
        weights = (1.0, 1.0, 1.0, _PARTNER_STEP, _PARTNER_STEP)
        return sum(weight * float((one**2).sum()) for weight, one in zip(weights, self._all(), strict=True))

    def rounding(self) -> float:
        """How far rounding may raise a value of the dual function at these multipliers."""
        norms = sum(float(np.linalg.norm(one)) for one in self._all())
        return 4 * len(self.rows[0]) * float(np.finfo(np.float64).eps) * norms

    def _all(self) -> tuple[Floats, ...]:
        return self.rows, self.order, self.shares, self.mutual, self.nested


def pair_bounds(
    losses: StageLosses, rules: Rules, sizes: Floats, limit: float, target: float, multipliers: Floats, rounds: int
) -> Iterator[float]:
    """Lower bounds on the cost of every tree that fits, offset not included; none for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kinds `mean` and `sum`.
        target: cost of a known tree, which the bounds never exceed; it sets the length of steps.
        multipliers: (D,) for each stage what one more cluster is worth, to start from.
        rounds: number of steps for 40 tasks; fewer are taken for more tasks.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST:
        return
    widths = WidthBounds(rules, sizes, limit)
    at = _start(losses, multipliers)
    best, best_at, length, idle = -np.inf, at, _LENGTH, 0
    way = None
    for _ in range(min(rounds, round(rounds * (40 / n) ** 3))):
        value, slope = _relaxed(losses, rules, widths, at, target)
        if slope is None:
            yield target
            return
        yield value - at.rounding()
        idle = 0 if value > best + _PROGRESS * abs(best) else idle + 1
        if value > best:
            best, best_at = value, at
        if idle == _PATIENCE:
            length, idle, at = length / 2, 0, best_at
        way = slope if way is None else way.mixed(slope, _MEMORY)
        norm = way.norm()
        if norm == 0.0:
            break
        # Polyak's step: the distance to the target over the squared norm of the direction.
        at = at.moved(way, length * max(target - value, 0.0) / norm)


def _start(losses: StageLosses, multipliers: Floats) -> _Multipliers:
    depth, n = losses.pairs.shape[:2]
    each, between = np.zeros((depth, n, n)), np.zeros((depth - 1, n, n))
    return _Multipliers(-multipliers[:, None, None] * np.eye(n), between, each, each, between)


def _relaxed(
    losses: StageLosses, rules: Rules, widths: WidthBounds, at: _Multipliers, target: float
) -> tuple[float, _Multipliers | None]:
    """Value and slope of the dual function; no slope where the value reaches the target, rounding included."""
    nested = _differences(at.nested)
    choices = [
        _choose(
            losses.pairs[d] / losses.divisor + at.shares[d],
            at.rows[d],
            at.mutual[d] + nested[d],
            rules.apart[d],
            losses.kind,
        )
        for d in range(losses.depth)
    ]
    paid = sum(choice.value for choice in choices)
    sums, vectors = _rank_sums(at.rows - _differences(at.order))
    value, best = widths.least(sums, target + at.rounding() - paid)
    if not best:
        return target, None
    wide = np.array([_projection(vectors[d], width) for d, width in enumerate(best)])
    partners = np.array([choice.partners for choice in choices])
    shares = np.array([choice.shares for choice in choices])
    chosen = np.array([choice.rows for choice in choices])
    slope = _Multipliers(
        rows=wide - (chosen + _flip(chosen)) / 2,
        order=wide[:-1] - wide[1:],
        shares=(shares - _flip(shares)) / 2,
        mutual=(partners - _flip(partners)) / 2,
        nested=partners[1:] - partners[:-1],
    )
    return value + paid, slope


@dataclass(frozen=True, eq=False)
class _Choice:
    """The tasks' cheapest choices at a stage: their value, rows of Z, shares of pair losses, and partners (N, N)."""

    value: float
    rows: Floats
    shares: Floats
    partners: Floats


def _choose(losses: Floats, rows: Floats, prices: Floats, apart: npt.NDArray[np.bool_], kind: str) -> _Choice:
    """For each task the size s and the s - 1 partners of least priced loss."""
    n = len(losses)
    sizes, place = np.arange(1, n + 1), np.arange(n)
    share = 1.0 / np.maximum(sizes - 1, 1) if kind == "mean" else np.full(n, 0.5)
    priced = share[:, None, None] * losses - rows / sizes[:, None, None] + prices
    priced[:, place, place] = np.inf
    priced[:, apart] = np.inf
    order = np.argsort(priced, axis=2)
    sums = np.cumsum(np.take_along_axis(priced, order, axis=2)[:, :, : n - 1], axis=2)
    values = -np.diag(rows)[None] / sizes[:, None]
    values[1:] += sums[place[1:], :, place[:-1]]
    taken = values.argmin(axis=0)
    partners = np.zeros((n, n))
    np.put_along_axis(partners, order[taken, place], (place[None] < taken[:, None]).astype(float), axis=1)
    chosen = (partners + np.eye(n)) / sizes[taken][:, None]
    return _Choice(float(values[taken, place].sum()), chosen, partners * share[taken][:, None], partners)


def _rank_sums(matrices: Floats) -> tuple[Floats, Floats]:
    """For every stage and rank k = 0..N the least trace product with a projection of rank k whose rows sum to 1.

    Returns the sums, (D, N + 1), inf at k = 0, and eigenvectors orthogonal to the ones, (D, N, N - 1), best first.
    """
    depth, n = matrices.shape[:2]
    # Z maps the vector of ones to itself, so k - 1 of its k directions lie in the complement, where Ky Fan applies.
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, : n - 1]], axis=1))[0][:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ matrices @ basis)
    sums = np.full((depth, n + 1), np.inf)
    sums[:, 1] = matrices.sum(axis=(1, 2)) / n
    sums[:, 2:] = sums[:, 1, None] + np.cumsum(values, axis=1)
    return sums, basis @ vectors


def _projection(vectors: Floats, width: int) -> Floats:
    chosen = vectors[:, : width - 1]
    return np.asarray(chosen @ chosen.T + 1.0 / len(vectors))


def _semidefinite(matrices: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray((vectors * np.maximum(values, 0.0)[:, None, :]) @ _flip(vectors))


def _differences(between: Floats) -> Floats:
    """What multipliers of neighbouring stages add to each stage's prices."""
    edge = np.zeros((1, *between.shape[1:]))
    padded = np.concatenate([edge, between, edge])
    return np.asarray(padded[:-1] - padded[1:])


def _flip(matrices: Floats) -> Floats:
    return matrices.transpose(0, 2, 1)
