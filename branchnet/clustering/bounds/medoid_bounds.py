"""A tighter lower bound for the objective `medoid`: facilities of several levels, by Lagrangian relaxation.

A tree is a forest of nodes (stage d, representative a): each has one parent (d - 1, b), and a task's path runs through
the nodes that serve it, one for each stage. So it is a facility location problem of D levels, in which an edge (b, a)
that is open carries any of the tasks at their losses. Relaxed is that a task's path hangs together, with potentials
`[d, t, a]`: what it costs at most to have brought task t to node a of stage d. What is left is solved exactly for any
potentials: an edge takes the tasks that gain on it (and a itself, which its own node always serves), a node its best
parent, a stage its best w nodes; then the widths are chosen within the budget. So every value is a valid bound.

Potentials that are sums over stages of one number for each task give every stage's k-medoid relaxation on its own; the
ascent starts there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.ascent import Ascent, climb
from branchnet.clustering.bounds.width_knapsack import PricedWidths, WidthBounds
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_LARGEST = 240
_LENGTH = 0.05  # first length of steps, as a share of the stage's median loss
# So many steps to one value that is handed out.
_STEPS = 6


def medoid_bounds(
    losses: StageLosses, rules: Rules, sizes: Floats, limit: float, target: float, rounds: int
) -> Iterator[float]:
    """Rising lower bounds on the cost of every tree that fits, offset not included; none for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kind `medoid`, summed over clusters.
        target: cost of a known tree, which the bounds never exceed.
        rounds: number of values for 40 tasks, of six steps each; fewer are found for more tasks.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST:
        return
    relaxation = _Relaxation(losses, rules, PricedWidths(rules, sizes, limit))
    # A step takes time as D * N^3, from 40 tasks on.
    steps = _STEPS * max(1, round(rounds * min(1.0, (40 / n) ** 1.2)))
    ascent = Ascent(relaxation.start(target), _LENGTH * relaxation.typical, steps)

    def value(at: Floats) -> tuple[float, Floats]:
        found, slope = relaxation.value(at)
        return found - relaxation.rounding(at), slope

    best = yield from climb(ascent.potentials, value, ascent.move, steps=steps, every=_STEPS, target=target)
    if best.value >= target:
        return
    # The programme over widths ties neighbouring stages' widths together, which the price on the budget does not.
    tables, paid = relaxation.tables(best.at)
    margin = relaxation.rounding(best.at) - paid
    yield min(target, max(best.value, WidthBounds(rules, sizes, limit).least(tables)[0] - margin))


@dataclass(frozen=True, eq=False)
class _Relaxation:
    losses: StageLosses
    rules: Rules
    widths: PricedWidths

    @cached_property
    def typical(self) -> Floats:
        """(D, 1, 1), the stage's median loss."""
        return np.median(np.abs(self.losses.pairs), axis=(1, 2))[:, None, None] / self.losses.divisor

    def start(self, target: float) -> Floats:
        """Potentials (D, N, N), `[d, t, a]`: every task pays the same for each stage, in proportion to its losses."""
        apart = self.rules.apart.transpose(0, 2, 1)
        served = [stage[~far] for stage, far in zip(self._served, apart, strict=True)]
        typical = np.array([np.median(stage) for stage in served])
        total = max(float(typical.sum()), 1e-300)
        share = typical / total * target / len(self.losses.tasks)
        return np.broadcast_to(np.cumsum(share)[:, None, None], self._served.shape).copy()

    @cached_property
    def _served(self) -> Floats:
        """`[d, t, a]`: what task t loses by representative a."""
        return np.ascontiguousarray((self.losses.pairs / self.losses.divisor).transpose(0, 2, 1))

    def _left(self, d: int, at: Floats) -> Floats:
        """`[t, a]`: what the node costs a task less its potential there; too much to gain where they may not share."""
        left: Floats = self._served[d] - at[d]
        if (apart := self.rules.apart[d]).any():
            left[apart.T] = float(np.abs(at[d - 1]).max()) if d else 0.0
        return left

    def rounding(self, at: Floats) -> float:
        """How far rounding may raise a value at these potentials."""
        largest = float(np.abs(at).max(initial=0.0)) + float(np.abs(self._served).max(initial=0.0))
        n, depth = len(self.losses.tasks), self.losses.depth
        return 4 * n**3 * depth * float(np.finfo(np.float64).eps) * largest

    def tables(self, at: Floats) -> tuple[Floats, float]:
        """(D, N + 1) least worths of so many nodes of a stage, and what all tasks have paid in the end."""
        worths = [np.sort(self._nodes(d, at)[0]) for d in range(self.losses.depth)]
        return _cumulated(worths), _paid(at)

    def value(self, at: Floats) -> tuple[float, Floats]:
        """Value and slope of the dual function."""
        n = len(self.losses.tasks)
        nodes = [self._nodes(d, at) for d in range(self.losses.depth)]
        orders = [np.argsort(worth, kind="stable") for worth, _ in nodes]
        best = self.widths.least(_cumulated([node[0][order] for node, order in zip(nodes, orders, strict=True)]))
        slope = np.zeros_like(at)
        for d, (order, wide, narrow) in enumerate(zip(orders, best.wide, best.narrow, strict=True)):
            rank = np.arange(max(wide, narrow))
            weight = best.share * (rank < wide) + (1 - best.share) * (rank < narrow)
            chosen = order[: len(rank)]
            parents = nodes[d][1][chosen]
            above = at[d - 1][:, parents] if d else np.zeros((n, 1))
            taken = weight * (self._left(d, at)[:, chosen] + above < 0)
            taken[chosen, rank] = weight
            slope[d][:, chosen] -= taken
            if d:
                np.add.at(slope[d - 1].T, parents, taken.T)
        # The last potentials of a task are one number: in the end every task arrives once, wherever.
        slope[-1] = (1.0 + slope[-1].sum(axis=1))[:, None]
        return best.value + _paid(at), slope

    def _nodes(self, d: int, at: Floats) -> tuple[Floats, Ints]:
        """For each representative the least sum of what tasks gain on the edge from a parent, and that parent."""
        left = self._left(d, at)
        above = at[d - 1] if d else np.zeros((len(left), 1))
        # A task gains min(x, 0) = (x - |x|) / 2 with x = above + left; the representative itself x, whatever it is.
        sums = left.sum(axis=0)[:, None] + above.sum(axis=0)
        gains = (sums - cdist(left.T, -above.T, "cityblock")) / 2
        gains += np.maximum(above + left.diagonal()[:, None], 0.0)
        parents = gains.argmin(axis=1)
        return gains[np.arange(len(left)), parents], parents


def _cumulated(worths: list[Floats]) -> Floats:
    sums = np.cumsum(worths, axis=1)
    return np.concatenate([np.full((len(sums), 1), np.inf), sums], axis=1)


def _paid(at: Floats) -> float:
    return float(at[-1, :, 0].sum())
