"""The cheapest chains for every vector of widths, exactly: a dynamic programme over sets of tasks that have started.

See `chains` for what a chain is. With S_d the set of tasks with s_t <= d, the states are (S_d, widths w_0..w_{d-1}), as
those of `exact.dynamic_program` are partitions with widths, so that sizes may come from any table. With c_d(S', S) the
sum over the tasks t of S outside S' of the least loss that a donor of S' leaves t at location d - 1,

    G_d(S, h + (w)) = min over subsets S' of S with w tasks of G_{d-1}(S', h) + c_d(S', S),

and in the end the tasks outside S_{D-1} hang their heads off it. There are 3^N pairs of nested subsets, so this is
quick where partitions are many: N = 12, D = 6 in seconds.

Subsets of one size are ordered as combinations of the tasks' numbers; histories (w_0, ..., w_d) with the same w_d by
w_{d-1}, then w_{d-2}, and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.dynamic_program import width_vectors
from branchnet.clustering.stitching.chains import chains_of
from branchnet.clustering.stitching.stitch_losses import StitchLosses

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Levels = list[Floats]


@dataclass(frozen=True, eq=False)
class Subsets:
    """All subsets of N tasks, by their number of tasks.

    Attributes:
        members: per size k = 0..N the subsets, bool, (C(N, k), N).
        inner: per size k, for each size j <= k, the places of the subsets of j tasks, int32, (C(N, k), C(k, j)).
    """

    members: list[Bools]
    inner: list[list[npt.NDArray[np.int32]]]


@lru_cache(maxsize=2)
def subsets(n: int) -> Subsets:
    """The subsets of `n` tasks; kept between calls."""
    chosen = [_combinations(n, k) for k in range(n + 1)]
    place = np.zeros(1 << n, np.int32)
    members = []
    for rows in chosen:
        place[(1 << rows).sum(axis=1)] = np.arange(len(rows))
        inside = np.zeros((len(rows), n), np.bool_)
        np.put_along_axis(inside, rows, True, axis=1)
        members.append(inside)
    inner = [
        [place[(1 << rows[:, one]).sum(axis=2)] for one in (_combinations(k, j) for j in range(k + 1))]
        for k, rows in enumerate(chosen)
    ]
    return Subsets(members, inner)


def _combinations(k: int, j: int) -> Ints:
    return np.array(list(combinations(range(k), j)), np.int64).reshape(math.comb(k, j), j)


@dataclass(frozen=True, eq=False)
class ChainTable:
    """The least cost for every vector of widths, and what is needed to find chains that have it.

    Attributes:
        widths: (V, D), every non-decreasing vector of widths 1..N.
        costs: (V,), inf where widths are not allowed.
        tie: costs that differ by no more than this are equal.
        slack: absolute rounding error of the costs.
    """

    widths: Ints
    costs: Floats
    tie: float
    slack: float
    _losses: StitchLosses
    _levels: list[Levels]
    _heads: Levels

    @property
    def tolerance(self) -> float:
        """By how much costs may differ and still count as equal."""
        return self.tie + self.slack

    def labels(self, row: int, ceiling: float) -> Ints:
        """Cluster numbers, (D, N), of the first chains with `widths[row]` that cost no more than the ceiling."""
        widths, grid = self.widths[row].tolist(), subsets(len(self._losses.tasks))
        column = _columns(widths)
        left = float(self.costs[row]) + max(ceiling - float(self.costs[row]), 0.0) + self.slack
        heads = self._heads[widths[-1]]
        place = _first(self._levels[-1][widths[-1]][:, column[-1]] + heads, left)
        left -= float(heads[place])
        started = [grid.members[widths[-1]][place]]
        for stage in range(len(widths) - 1, 0, -1):
            width, before = widths[stage], widths[stage - 1]
            inner = grid.inner[width][before][place]
            new = started[0] & ~grid.members[before][inner]
            added = (_offers(self._losses.pairs[stage - 1], grid.members[before][inner]) * new).sum(axis=1)
            first = _first(self._levels[stage - 1][before][inner, column[stage - 1]] + added, left)
            left -= float(added[first])
            place = int(inner[first])
            started.insert(0, grid.members[before][place])
        starts = len(widths) - np.sum(started, axis=0)
        spare = max(left - self.slack - float(self._levels[0][widths[0]][place, 0]), 0.0)
        return chains_of(self._losses.pairs, starts, spare).labels(len(widths))


def chain_work(n: int, depth: int) -> tuple[int, int]:
    """Numbers compared, and bytes held, by `chain_table`."""
    compared = held = 0
    for k in range(n + 1):
        held += math.comb(n, k) * (n + 4 * 2**k + (8 if k else 0))
        for d in range(depth if k else 0):
            held += 8 * math.comb(n, k) * _histories(k, d)
            if d:
                compared += math.comb(n, k) * sum(math.comb(k, j) * _histories(j, d - 1) for j in range(1, k + 1))
    return compared, held


def chain_table(
    losses: StitchLosses, least: tuple[int, ...], most: tuple[int, ...], deadline: Deadline | None = None
) -> ChainTable:
    """Solve for all vectors of widths at once.

    Args:
        losses: what tasks lose.
        least: D least widths.
        most: D largest widths.
        deadline: when to stop.

    Raises:
        OutOfTime: the deadline has passed.
    """
    deadline = deadline or Deadline()
    n, depth = len(losses.tasks), losses.depth
    grid = subsets(n)
    deadline.begin("solving exactly", chain_work(n, depth)[0])
    levels = [[np.zeros((len(inside), 1 if k else 0)) for k, inside in enumerate(grid.members)]]
    _bar(levels[0], least[0], most[0])
    for d in range(1, depth):
        levels.append(_next_levels(grid, levels[-1], losses.pairs[d - 1], d, deadline))
        _bar(levels[d], least[d], most[d])
    heads = [np.zeros(0)]
    heads += [(_offers(losses.pairs[-1], inside) * ~inside).sum(axis=1) for inside in grid.members[1:]]
    costs = [(levels[-1][k] + heads[k][:, None]).min(axis=0) for k in range(1, n + 1)]
    return ChainTable(
        widths=width_vectors(n, depth),
        costs=np.concatenate(costs),
        tie=losses.tie,
        # Sums of at most N terms, each of which rounds by a few units in the last place (1e-16) of the sum.
        slack=1e-15 * n * float(np.abs(losses.pairs).max(axis=(0, 1)).sum()),
        _losses=losses,
        _levels=levels,
        _heads=heads,
    )


def _next_levels(grid: Subsets, before: Levels, pairs: Floats, d: int, deadline: Deadline) -> Levels:
    """`G_d` from `G_{d-1}`; `pairs` are those of location d - 1."""
    offers = [np.zeros((0, 0))] + [_offers(pairs, inside) for inside in grid.members[1:]]
    levels = [np.zeros((1, 0))]
    for k in range(1, len(grid.members)):
        inside, blocks = grid.members[k], []
        for j in range(1, k + 1):
            places = grid.inner[k][j]
            block = np.full((len(inside), before[j].shape[1]), np.inf)
            for column in range(places.shape[1]):
                inner = places[:, column]
                added = (offers[j][inner] * (inside & ~grid.members[j][inner])).sum(axis=1)
                np.minimum(block, before[j][inner] + added[:, None], out=block)
            deadline.step(places.size * block.shape[1])
            blocks.append(block)
        levels.append(np.concatenate(blocks, axis=1))
    return levels


def _offers(pairs: Floats, inside: Bools) -> Floats:
    """What each task loses at least on features of a set of donors, (M, N), for sets (M, N)."""
    best = np.full(inside.shape, np.inf)
    for donor in range(len(pairs)):
        np.minimum(best, np.where(inside[:, donor, None], pairs[donor], np.inf), out=best)
    return best


def _bar(level: Levels, least: int, most: int) -> None:
    for k, values in enumerate(level):
        if not least <= k <= most:
            values[:] = np.inf


def _first(values: Floats, most: float) -> int:
    """The first place whose value is no larger; rounding must not leave none."""
    return int(np.flatnonzero(values <= max(most, float(values.min())))[0])


def _histories(k: int, d: int) -> int:
    """Number of non-decreasing vectors (w_0, ..., w_d) of widths from 1 with w_d = k."""
    return math.comb(k + d - 1, d)


def _columns(widths: list[int]) -> list[int]:
    """For each stage the column of its history."""
    columns = [0]
    for d in range(1, len(widths)):
        columns.append(columns[-1] + sum(_histories(j, d - 1) for j in range(1, widths[d - 1])))
    return columns
