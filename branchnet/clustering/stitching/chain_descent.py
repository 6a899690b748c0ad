"""A good tree for many tasks: descent over the starts of chains, and rounds that leave a local optimum.

A tree is given by the starts of its tasks (see `chains`); hosts are the best. A move gives one task another start, or
exchanges the starts of two tasks, which keeps the widths; all moves are priced at once. A round takes one of the best
moves although it exceeds the limit, pays back by the moves that lose least for the size that they save, and descends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.bounds.width_knapsack import best_widths
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.stitching.chains import chain_costs, widths_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_ROOM = 1 + 1e-12
# Numbers of one batch of moves, (moves, N, N): 32 MB.
_BATCH = 4_000_000
_ROUNDS = 40
# A round takes one of the 40 best moves at random: enough that rounds differ, few enough that it is a good one.
_CHOICES = 40
# Every repair shrinks the tree, so it ends by itself; the limit guards against moves that save next to nothing.
_REPAIRS = 200


@dataclass(frozen=True, eq=False)
class ChainLandscape:
    """What chains cost, for the descent.

    Attributes:
        pairs: (D, N, N) losses by location, donor and task.
        sizes: (D, N + 1) size of every stage at every width; inf where a width is not allowed.
        limit: largest size.
        tie: costs that differ by no more than this are equal.
    """

    pairs: Floats
    sizes: Floats
    limit: float
    tie: float

    def costs(self, starts: Ints) -> Floats:
        """Cost of each row of starts, (B,)."""
        rows = max(1, _BATCH // self.pairs.shape[1] ** 2)
        return np.concatenate([chain_costs(self.pairs, starts[i : i + rows]) for i in range(0, len(starts), rows)])

    def sizes_of(self, starts: Ints) -> Floats:
        """Size of each row of starts, (B,); inf where no task starts at stage 0, or a width is not allowed."""
        widths = widths_of(starts, len(self.pairs))
        allowed = np.where(np.arange(self.sizes.shape[1]) > 0, self.sizes, np.inf)
        return np.asarray(np.take_along_axis(allowed, widths.T, axis=1).sum(axis=0))


def smallest_widths(sizes: Floats) -> tuple[int, ...] | None:
    """The vector of widths of least size; None where none is allowed."""
    allowed = np.where(np.arange(sizes.shape[1]) > 0, sizes, np.inf)
    return best_widths(allowed, np.zeros_like(sizes), 1.0)


def chain_search(land: ChainLandscape, deadline: Deadline, seed: int) -> tuple[Ints, str]:
    """The best starts that were found, (N,), and what ended the search early; some tree must fit."""
    generator = np.random.default_rng(seed)
    best = _first_starts(land)
    try:
        deadline.begin("searching trees", _ROUNDS + 1)
        best = descend_chains(land, best, deadline)
        deadline.step()
        for _ in range(_ROUNDS):
            other = _repaired(land, _overdrawn(land, best, generator))
            if land.sizes_of(other[None])[0] <= land.limit * _ROOM:
                best = better_starts(land, best, descend_chains(land, other, deadline))
            deadline.step()
    except OutOfTime:
        return best, "stopped at the time limit"
    except KeyboardInterrupt:
        return best, "interrupted"
    return best, ""


def better_starts(land: ChainLandscape, first: Ints, second: Ints) -> Ints:
    """The cheaper of two that fit; of equal ones the smaller, then the first."""
    both = np.array([first, second])
    costs, sizes = land.costs(both), land.sizes_of(both)
    if abs(costs[0] - costs[1]) > land.tie:
        return second if costs[1] < costs[0] else first
    return second if sizes[1] < sizes[0] * (1 - 1e-12) else first


def _first_starts(land: ChainLandscape) -> Ints:
    """A smallest tree; the tasks that are the best donors on average start first."""
    widths = smallest_widths(land.sizes)
    assert widths is not None
    order = np.argsort(land.pairs.mean(axis=(0, 2)), kind="stable")
    starts = np.empty(len(order), np.int64)
    starts[order] = (np.arange(len(order))[:, None] >= np.array(widths)).sum(axis=1)
    return starts


def descend_chains(land: ChainLandscape, starts: Ints, deadline: Deadline) -> Ints:
    """Take the best move that fits until none lowers the cost (or, at equal cost, the size)."""
    while True:
        deadline.step(0)
        rows = np.concatenate([starts[None], _moves(starts, len(land.pairs))])
        sizes = land.sizes_of(rows)
        rows, sizes = rows[fitting := sizes <= land.limit * _ROOM], sizes[fitting]
        if not len(rows):
            return starts
        costs = land.costs(rows)
        tied = np.flatnonzero(costs <= costs.min() + land.tie)
        best = tied[sizes[tied].argmin()]
        same = np.flatnonzero((rows == starts).all(axis=1))
        if len(same) and costs[best] >= costs[same[0]] - land.tie and sizes[best] >= sizes[same[0]] * (1 - 1e-12):
            return starts
        starts = rows[best]


def _moves(starts: Ints, depth: int) -> Ints:
    """Every other start of one task, and every exchange of two different ones."""
    n = len(starts)
    single = np.repeat(starts[None], n * (depth + 1), axis=0)
    single[np.arange(len(single)), np.repeat(np.arange(n), depth + 1)] = np.tile(np.arange(depth + 1), n)
    first, second = np.triu_indices(n, 1)
    different = starts[first] != starts[second]
    first, second = first[different], second[different]
    swapped = np.repeat(starts[None], len(first), axis=0)
    rows = np.arange(len(first))
    swapped[rows, first], swapped[rows, second] = starts[second], starts[first]
    return np.concatenate([single, swapped])


def _overdrawn(land: ChainLandscape, starts: Ints, generator: np.random.Generator) -> Ints:
    """The starts after one of the moves of least cost, whatever their size."""
    rows = _moves(starts, len(land.pairs))
    rows = rows[np.isfinite(land.sizes_of(rows))]
    if not len(rows):
        return starts
    return np.asarray(rows[generator.choice(np.argsort(land.costs(rows), kind="stable")[:_CHOICES])])


def _repaired(land: ChainLandscape, starts: Ints) -> Ints:
    """Bring starts under the limit by the moves that lose least for the size that they save."""
    for _ in range(_REPAIRS):
        now, size = land.costs(starts[None])[0], land.sizes_of(starts[None])[0]
        if size <= land.limit * _ROOM:
            break
        rows = _moves(starts, len(land.pairs))
        sizes = land.sizes_of(rows)
        rows, sizes = rows[smaller := sizes < size * (1 - 1e-12)], sizes[smaller]
        if not len(rows):
            break
        starts = rows[((land.costs(rows) - now) / (size - sizes)).argmin()]
    return starts
