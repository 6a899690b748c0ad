"""Lower bounds on the sum of k clusters' diameters, from cliques.

At a threshold r the tasks and the pairs that lose at most r form a graph; a cluster of diameter r is a clique in it.

- g(m): the smallest diameter of any m tasks, by searching for cliques.
- cover(x): clusters of diameter at most r, other than single tasks, are disjoint cliques. Their excess, sum (size - 1),
  is at most N minus the number of tasks that are pairwise farther apart than r, and at most the sum over tasks of
  1 - 1 / (size of the task's largest clique). cover(x) is the least r at which an excess of x is possible.

In order of their diameters, a cluster of size m that brings the excess so far to x has a diameter of at least
max(g(m), cover(x)); so the least sum for k clusters and excess N - k is a small dynamic programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# For more tasks the search takes too long, and the bound by degrees stands alone.
_SEARCHED_TASKS = 64
# A search that is cut short counts as a clique found: the bound is then lower, and still a bound.
_NODES = 2_000
_THRESHOLDS = 800


@dataclass(frozen=True, eq=False)
class StageRadii:
    """What a stage's clusters need at least.

    Attributes:
        smallest: (N + 1,), g(m).
        cover: (N,), cover(x).
        own: (N, N + 1), `[i, m]`, the same as g(m) for m tasks of which i is one.
    """

    smallest: Floats
    cover: Floats
    own: Floats
    _sums: dict[int, Floats] = field(default_factory=dict, repr=False)

    def sums(self, largest: int) -> Floats:
        """`diameter_sums` where no cluster has more than `largest` tasks."""
        if largest not in self._sums:
            smallest = self.smallest.copy()
            smallest[largest + 1 :] = np.inf
            self._sums[largest] = diameter_sums(smallest, self.cover)
        return self._sums[largest]

    def of_widths(self, largest: int) -> Floats:
        """For k = 0..N a lower bound on the sum of k clusters' diameters; inf at 0; (N + 1,)."""
        widths = np.arange(1, len(self.smallest))
        return np.concatenate([[np.inf], self.sums(largest)[widths, len(widths) - widths]])


def stage_radii(pairs: Floats) -> StageRadii:
    """The radii of a stage with these losses, (N, N), none negative."""
    smallest = clique_diameters(pairs)
    own = _own_diameters(pairs, smallest)
    return StageRadii(smallest, cover_thresholds(pairs, own), own)


def diameter_sums(smallest: Floats, cover: Floats) -> Floats:
    """`[k, x]`: a lower bound on the sum of the diameters of k clusters with excess x; (N + 1, N).

    Args:
        smallest: (N + 1,), g(m); inf where no cluster may have m tasks.
        cover: (N,), cover(x).
    """
    n = len(cover)
    excess, added = np.ogrid[0:n, 1:n]
    last = np.maximum(smallest[2:][None], cover[:, None])
    before = np.maximum(excess - added, 0)
    sums = np.full((n + 1, n), np.inf)
    sums[0, 0] = 0.0
    for k in range(1, n + 1):
        grown = np.where(added <= excess, last + sums[k - 1][before], np.inf)
        sums[k] = np.minimum(sums[k - 1], grown.min(axis=1, initial=np.inf))
    return sums


def clique_diameters(pairs: Floats) -> Floats:
    """g(m) for m = 0..N: a lower bound on the diameter of any m tasks; exact for few tasks."""
    core = _degree_diameters(pairs)
    return np.maximum(core, _searched_diameters(pairs)) if len(pairs) <= _SEARCHED_TASKS else core


def cover_thresholds(pairs: Floats, own: Floats) -> Floats:
    """cover(x) for x = 0..N - 1.

    Args:
        pairs: (N, N) losses.
        own: (N, N + 1), `[i, m]`, a lower bound on the diameter of any m tasks of which i is one.
    """
    n = len(pairs)
    thresholds = np.unique(pairs[np.triu_indices(n, 1)])
    cover = np.full(n, np.inf)
    cover[0] = 0.0
    reached = above = 0
    for place in np.unique(np.linspace(0, len(thresholds) - 1, _THRESHOLDS).astype(int)).tolist():
        largest = (own[:, 1:] <= thresholds[place]).sum(axis=1)
        # 1e-9: a sum that is a whole number must not be rounded down to the one below, which would not be a bound.
        excess = int(np.floor((1.0 - 1.0 / largest).sum() + 1e-9))
        if excess > reached:
            excess = min(excess, n - tasks_apart(pairs > thresholds[place]))
            # The place just above the last one at which it was not possible: between two places nothing was checked.
            cover[reached + 1 : excess + 1] = thresholds[above]
            reached = max(reached, excess)
        above = place + 1
    return cover


def first_place(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The first place from `low` to `high` at which a condition holds that stays true from there on.

    By doubling steps, since that place is expected near `low`; at `high` the condition is taken to hold.
    """
    if low >= high or holds(low):
        return low
    step = 1
    while low + step < high and not holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, high)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def tasks_apart(far: Bools) -> int:
    """Size of a set of tasks of which every two are `far`, (N, N), found greedily."""
    alive, size = np.ones(len(far), np.bool_), 0
    while alive.any():
        rest = np.flatnonzero(alive)
        alive &= far[rest[far[rest[:, None], rest].sum(axis=1).argmax()]]
        size += 1
    return size


def _own_diameters(pairs: Floats, smallest: Floats) -> Floats:
    """`[i, m]`: a lower bound on the diameter of any m tasks of which i is one."""
    n = len(pairs)
    own = np.tile(smallest, (n, 1))
    for task in range(n if n > 2 else 0):
        others = np.delete(np.arange(n), task)
        reach = pairs[task, others]
        joint = np.maximum(pairs[others[:, None], others], np.maximum(reach[:, None], reach[None]))
        np.fill_diagonal(joint, 0.0)
        own[task, 2] = max(own[task, 2], reach.min())
        own[task, 3:] = np.maximum(own[task, 3:], clique_diameters(joint)[2:])
    return own


def _degree_diameters(pairs: Floats) -> Floats:
    """Each of m tasks of diameter r has m - 1 others within r: the m-th smallest (m - 1)-th nearest loss."""
    n = len(pairs)
    nearest = np.sort(pairs + np.where(np.eye(n, dtype=np.bool_), -np.inf, 0.0), axis=1)
    bound = np.zeros(n + 1)
    bound[2:] = np.sort(nearest[:, 1:], axis=0)[np.arange(1, n), np.arange(n - 1)]
    return bound


def _searched_diameters(pairs: Floats) -> Floats:
    """Add pairs in order of loss; whenever a larger clique appears, its last pair is the diameter of that size."""
    n = len(pairs)
    first, second = np.triu_indices(n, 1)
    order = np.argsort(pairs[first, second], kind="stable")
    apart = [((1 << n) - 1) & ~(1 << i) for i in range(n)]
    diameters = np.zeros(n + 1)
    clique = 1
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        apart[i] &= ~(1 << j)
        apart[j] &= ~(1 << i)
        common = ((1 << n) - 1) & ~(apart[i] | apart[j] | (1 << i) | (1 << j))
        if common.bit_count() >= clique - 1 and _has_clique(common, clique - 1, apart, [_NODES]):
            clique += 1
            diameters[clique] = pairs[i, j]
    return diameters


def may_have_clique(far: Bools, needed: int, nodes: int) -> bool:
    """Whether there may be `needed` tasks of which no two are `far`, (N, N); True where `nodes` steps leave it open."""
    rows = np.packbits(far, axis=1, bitorder="little")
    apart = [int.from_bytes(row.tobytes(), "little") for row in rows]
    return _has_clique((1 << len(far)) - 1, needed, apart, [nodes])


def _has_clique(tasks: int, needed: int, apart: list[int], nodes: list[int]) -> bool:
    """Whether `needed` of the tasks (a bit mask) are pairwise not apart; True where the search is cut short."""
    nodes[0] -= 1
    if nodes[0] < 0:
        return True
    surplus = tasks.bit_count() - needed
    while surplus >= 0:
        worst, conflicts, total = _worst_conflict(tasks, apart)
        if conflicts == 0:
            return True
        if total > 2 * surplus * conflicts:  # leaving a task out ends at most `conflicts` of the total / 2 conflicts
            return False
        if conflicts > surplus:  # keeping it would force more tasks out than may go
            tasks &= ~(1 << worst)
            surplus -= 1
            continue
        if conflicts > 1 and _has_clique(tasks & ~apart[worst], needed, apart, nodes):
            return True
        tasks &= ~(1 << worst)
        surplus -= 1
    return False


def _worst_conflict(tasks: int, apart: list[int]) -> tuple[int, int, int]:
    """The task with most conflicts among `tasks`, their number, and the sum over all tasks."""
    worst = most = total = 0
    rest = tasks
    while rest:
        low = rest & -rest
        task = low.bit_length() - 1
        count = (apart[task] & tasks).bit_count()
        total += count
        if count > most:
            worst, most = task, count
        rest ^= low
    return worst, most, total
