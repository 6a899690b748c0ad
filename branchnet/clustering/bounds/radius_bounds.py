"""A tighter lower bound for objectives by the largest loss: lenses of several levels, by Lagrangian relaxation.

As in `medoid_bounds`, a tree is a forest of nodes (stage d, representative a), and potentials `[d, t, a]` say what it
costs at most to have brought task t to node a of stage d. Here a cluster's representative is one of the two tasks that
attain its diameter, the first in order; with the other one, j, all its tasks are in the lens: no farther from a and
from j than these are from each other. So a node chooses its parent and j, pays the loss of (a, j), takes the tasks of
the lens that gain, and a and j in any case.

At width w a cluster has at most N - w + 1 tasks, and of this diameter at most as many as the largest clique at it that
holds a and j. Where the lens has more, the excess is priced, with a multiplier `[d, a]` that is not negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.ascent import Adam, Ascent, climb
from branchnet.clustering.bounds.clique_bounds import StageRadii
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# A step takes D products of N matrices (N, N) by (N, N).
_LARGEST = 80
# First lengths of steps as shares of what each task pays for a stage at first; of potentials and of prices for excess.
_LENGTH, _EXCESS_LENGTH = 0.1, 0.03
# Into how many steps the budget is cut during the ascent, and how many steps go to one value that is handed out.
_COARSE, _STEPS = 400, 2


def radius_bounds(
    losses: StageLosses,
    radii: Sequence[StageRadii],
    rules: Rules,
    sizes: Floats,
    limit: float,
    target: float,
    rounds: int,
) -> Iterator[float]:
    """Rising lower bounds on the cost of every tree that fits, offset not included; none for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kind `max`, none negative.
        radii: for every stage.
        target: cost of a known tree, which the bounds never exceed.
        rounds: number of values for up to 40 tasks, of two steps each; fewer are found for more tasks.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST:
        return
    relaxation = _Relaxation(losses, radii, rules)
    widths = WidthBounds(rules, sizes, limit, _COARSE)
    steps = _STEPS * max(1, round(rounds * min(1.0, (40 / n) ** 3)))
    start = relaxation.start(target)
    length = _LENGTH * np.diff(start[:, :1, :1], axis=0, prepend=0.0)
    ascent = Ascent(start, length, steps)
    excess = Adam(np.zeros(start.shape[:2]), length[:, 0] * _EXCESS_LENGTH / _LENGTH, steps)

    def place() -> tuple[Floats, Floats]:
        return ascent.potentials(), excess.place

    def value(at: tuple[Floats, Floats]) -> tuple[float, tuple[Floats, Floats]]:
        found, *slopes = relaxation.value(*at, widths)
        return found - relaxation.rounding(*at), (slopes[0], slopes[1])

    def move(slopes: tuple[Floats, Floats]) -> None:
        ascent.move(slopes[0])
        excess.move(slopes[1])
        excess.place = np.maximum(excess.place, 0.0)

    best = yield from climb(place, value, move, steps=steps, every=_STEPS, target=target)
    if best.value >= target:
        return
    last = relaxation.value(*best.at, WidthBounds(rules, sizes, limit))[0] - relaxation.rounding(*best.at)
    yield min(target, max(best.value, last))


class _Stage(NamedTuple):
    """A stage's nodes at given potentials.

    Attributes:
        gains: (N, N, parents), `[a, t, b]`: what task t gains or loses on the edge from b to a.
        parents: (N, N), `[a, j]`: the best parent, excess not priced.
        priced_gains, priced_parents: the same with excess priced.
        others: (N, N), `[w - 1, a]`: the best j at width w.
        order: (N, N), `[w - 1]`: representatives, the best first.
    """

    gains: Floats
    parents: Ints
    priced_gains: Floats
    priced_parents: Ints
    others: Ints
    order: Ints


@dataclass(frozen=True, eq=False)
class _Relaxation:
    losses: StageLosses
    radii: Sequence[StageRadii]
    rules: Rules

    @cached_property
    def _pairs(self) -> Floats:
        return np.where(self.rules.apart, np.inf, self.losses.pairs)

    @cached_property
    def _lenses(self) -> Floats:
        """(D, N, N, N), `[d, a, j, t]`: whether t is in the lens of a and j; a alone where j is a."""
        pairs, tasks = self._pairs, np.arange(len(self.losses.tasks))
        inside = (pairs[:, :, None] <= pairs[..., None]) & (pairs[:, None] <= pairs[..., None])
        inside[:, tasks, tasks] = np.eye(len(tasks), dtype=np.bool_)
        return inside.astype(np.float64)

    @cached_property
    def _most(self) -> Floats:
        """(D, N, N, N), `[d, w - 1, a, j]`: how many tasks a cluster of this diameter has at most at width w."""
        n = len(self.losses.tasks)
        cliques = [
            (radii.own[:, None, 1:] <= pairs[..., None]).sum(axis=2)
            for radii, pairs in zip(self.radii, self.losses.pairs, strict=True)
        ]
        both = np.array([np.minimum(clique, clique.T) for clique in cliques], dtype=np.float64)
        return np.asarray(np.minimum(both[:, None], np.arange(n, 0, -1.0)[:, None, None]))

    @cached_property
    def _large(self) -> npt.NDArray[np.bool_]:
        """(D, N, N, N), `[d, w - 1, a, j]`: whether the lens has more tasks than that."""
        return np.asarray(self._lenses.sum(axis=3)[:, None] > self._most)

    @cached_property
    def _scaled(self) -> Floats:
        """(D, N, N, N), `[d, w - 1, a, j]`: what the node costs at width w; inf where j comes before a."""
        n = len(self.losses.tasks)
        diameters = np.where(np.tril(np.ones((n, n), np.bool_), -1), np.inf, self._pairs)
        scale = np.array([self.losses.scale(w) for w in range(1, n + 1)])
        return np.asarray(diameters[:, None] * scale[:, None, None])

    def start(self, target: float) -> Floats:
        """Potentials (D, N, N): every task pays the same for each stage, in proportion to its losses."""
        depth, n = self.losses.pairs.shape[:2]
        typical = np.median(self.losses.pairs, axis=(1, 2))
        share = typical / max(float(typical.sum()), 1e-300) * target / n
        return np.broadcast_to(np.cumsum(share)[:, None, None], (depth, n, n)).copy()

    def rounding(self, at: Floats, excess: Floats) -> float:
        """How far rounding may raise a value at these potentials."""
        n, depth = len(self.losses.tasks), self.losses.depth
        largest = float(np.abs(at).max(initial=0.0)) + n * float(excess.max(initial=0.0))
        largest += float(self.losses.pairs.max(initial=0.0)) * self.losses.scale(1)
        return 4 * n**3 * depth * float(np.finfo(np.float64).eps) * largest

    def value(self, at: Floats, excess: Floats, widths: WidthBounds) -> tuple[float, Floats, Floats]:
        """Value of the dual function, and its slopes in the potentials and in the prices for excess."""
        depth, n = self.losses.pairs.shape[:2]
        tables, stages = np.full((depth, n + 1), np.inf), []
        for d in range(depth):
            tables[d, 1:], stage = self._stage(d, at, excess[d])
            stages.append(stage)
        value, best = widths.least(tables)
        slope, excess_slope = np.zeros_like(at), np.zeros_like(excess)
        for d, (stage, width) in enumerate(zip(stages, best, strict=True)):
            chosen = stage.order[width - 1, :width]
            taken, parents, over = self._taken(d, stage, chosen, width)
            slope[d][:, chosen] -= taken.T
            excess_slope[d, chosen] = over
            if d:
                np.add.at(slope[d - 1].T, parents, taken)
        # The last potentials of a task are one number: in the end every task arrives once, wherever.
        slope[-1] = (1.0 + slope[-1].sum(axis=1))[:, None]
        return value + float(at[-1, :, 0].sum()), slope, excess_slope

    def _stage(self, d: int, at: Floats, excess: Floats) -> tuple[Floats, _Stage]:
        """For w = 1..N the least worth of w nodes, and the nodes."""
        gains = -at[d].T[:, :, None] + (at[d - 1] if d else np.zeros((at.shape[1], 1)))
        priced_gains = gains + excess[:, None, None]
        worth, parents = self._best_parents(d, gains)
        priced, priced_parents = self._best_parents(d, priced_gains)
        worths = np.where(self._large[d], priced - excess[:, None] * self._most[d], worth) + self._scaled[d]
        others = worths.argmin(axis=2)
        least = np.take_along_axis(worths, others[..., None], axis=2)[..., 0]
        order = np.argsort(least, axis=1, kind="stable")
        sums = np.cumsum(np.take_along_axis(least, order, axis=1), axis=1).diagonal()
        return sums, _Stage(gains, parents, priced_gains, priced_parents, others, order)

    def _best_parents(self, d: int, gains: Floats) -> tuple[Floats, Ints]:
        """`[a, j]`: the least sum of what the lens's tasks gain, and the parent from which they do."""
        tasks = np.arange(len(gains))
        gained = np.minimum(gains, 0.0)
        forced = gains - gained
        sums = self._lenses[d] @ gained + forced + forced[tasks, tasks][:, None]
        sums[tasks, tasks] -= forced[tasks, tasks]
        parents = sums.argmin(axis=2)
        return np.take_along_axis(sums, parents[..., None], axis=2)[..., 0], parents

    def _taken(self, d: int, stage: _Stage, chosen: Ints, width: int) -> tuple[Floats, Ints, Floats]:
        """For each chosen node the tasks that it takes, its parent, and its priced excess."""
        others = stage.others[width - 1, chosen]
        large = self._large[d, width - 1, chosen, others]
        parents = np.where(large, stage.priced_parents[chosen, others], stage.parents[chosen, others])
        gains = np.where(large[:, None], stage.priced_gains[chosen, :, parents], stage.gains[chosen, :, parents])
        taken = self._lenses[d, chosen, others] * (gains < 0)
        rows = np.arange(len(chosen))
        taken[rows, chosen] = taken[rows, others] = 1.0
        return taken, parents, large * (taken.sum(axis=1) - self._most[d, width - 1, chosen, others])
