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

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
# A step adds up D * N^3 numbers: so many tasks at most, and so many steps at least.
_LARGEST, _LEAST_ROUNDS = 240, 40
# Steps of Adam (Kingma and Ba 2015), as shares of the stage's median loss: from the first to the last length, and how
# much is kept of the mean slope and of its square. Any potentials give a valid bound; these decide how fast it rises.
_FIRST, _LAST, _MEAN, _SQUARE = 0.1, 0.003, 0.9, 0.95
# So many steps to one value that is handed out.
_STEPS = 2


def medoid_bounds(
    losses: StageLosses, rules: Rules, sizes: Floats, limit: float, target: float, rounds: int
) -> Iterator[float]:
    """Lower bounds on the cost of every tree that fits, offset not included; none for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kind `medoid`, summed over clusters.
        target: cost of a known tree, which the bounds never exceed.
        rounds: number of values for 40 tasks, of two steps each; fewer are found for more tasks.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST:
        return
    relaxation = _Relaxation(losses, rules, WidthBounds(rules, sizes, limit))
    at = relaxation.start(target)
    mean, square, best = np.zeros_like(at), np.zeros_like(at), -np.inf
    typical = np.median(np.abs(losses.pairs), axis=(1, 2))[:, None, None] / losses.divisor
    steps = max(min(_STEPS * rounds, _LEAST_ROUNDS), round(_STEPS * rounds * min(1.0, (40 / n) ** 3)))
    for step in range(steps):
        value, slope = relaxation.value(at, target)
        if slope is None:
            yield target
            return
        best = max(best, value - relaxation.rounding(at))
        if step % _STEPS == _STEPS - 1:
            yield best
        mean = _MEAN * mean + (1 - _MEAN) * slope
        square = _SQUARE * square + (1 - _SQUARE) * slope**2
        way = mean / (1 - _MEAN ** (step + 1)) / (np.sqrt(square / (1 - _SQUARE ** (step + 1))) + 1e-3)
        at = at + _FIRST * (_LAST / _FIRST) ** (step / steps) * typical * way


@dataclass(frozen=True, eq=False)
class _Relaxation:
    losses: StageLosses
    rules: Rules
    widths: WidthBounds

    def start(self, target: float) -> Floats:
        """Potentials (D, N, N), `[d, t, a]`: every task pays the same for each stage, in proportion to its losses."""
        served = self._served()
        typical = np.array([np.median(stage[np.isfinite(stage)]) for stage in served])
        total = max(float(typical.sum()), 1e-300)
        share = typical / total * target / len(self.losses.tasks)
        return np.broadcast_to(np.cumsum(share)[:, None, None], served.shape).copy()

    def _served(self) -> Floats:
        """`[d, t, a]`: what task t loses by representative a; inf where the two may not share."""
        pairs = np.where(self.rules.apart, np.inf, self.losses.pairs / self.losses.divisor)
        return np.asarray(pairs.transpose(0, 2, 1))

    def rounding(self, at: Floats) -> float:
        """How far rounding may raise a value at these potentials."""
        largest = float(np.abs(at).max(initial=0.0)) + float(np.abs(self.losses.pairs).max(initial=0.0))
        n, depth = len(self.losses.tasks), self.losses.depth
        return 4 * n * n * depth * float(np.finfo(np.float64).eps) * largest

    def value(self, at: Floats, target: float) -> tuple[float, Floats | None]:
        """Value and slope of the dual function; no slope where the value reaches the target, rounding included."""
        served, n = self._served(), len(self.losses.tasks)
        tables, nodes = np.full((self.losses.depth, n + 1), np.inf), []
        for d, stage in enumerate(served):
            left = stage - at[d]
            worth, parents = _best_parents(left, at[d - 1] if d else np.zeros((n, 1)))
            order = np.argsort(worth, kind="stable")
            tables[d, 1:] = np.cumsum(worth[order])
            nodes.append((order, parents))
        # The last potentials of a task are one number: what it must have paid in the end.
        paid = float(at[-1, :, 0].sum())
        value, best = self.widths.least(tables, target + self.rounding(at) - paid)
        if not best:
            return target, None
        slope = np.zeros_like(at)
        for d, width in enumerate(best):
            order, parents = nodes[d]
            chosen = order[:width]
            above = at[d - 1][:, parents[chosen]] if d else np.zeros((n, 1))
            taken = (served[d][:, chosen] - at[d][:, chosen] + above < 0).astype(np.float64)
            taken[chosen, np.arange(width)] = 1.0
            slope[d][:, chosen] -= taken
            if d:
                np.add.at(slope[d - 1].T, parents[chosen], taken.T)
        # In the end every task arrives once, wherever.
        slope[-1] = (1.0 + slope[-1].sum(axis=1))[:, None]
        return value + paid, slope


def _best_parents(left: Floats, above: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each representative the least sum over tasks of what they gain on the edge from a parent, and that parent.

    Args:
        left: (N, N), `[t, a]`; what the node costs a task less its potential there.
        above: (N, parents), `[t, b]`; the potentials at the parents.
    """
    n = len(left)
    worth, parents = np.empty(n), np.empty(n, np.int64)
    for a in range(n):
        gains = above + left[:, a, None]
        own = gains[a].copy()
        np.minimum(gains, 0.0, out=gains)
        gains[a] = own
        sums = gains.sum(axis=0)
        parents[a] = int(sums.argmin())
        worth[a] = sums[parents[a]]
    return worth, parents
