"""The cheapest tree for every vector of widths, exactly: a dynamic programme over the lattice of partitions.

A tree's size depends only on its widths, so the states are (partition of stage d, widths w_0 <= ... <= w_d): no sizes
are added, rounded or compared on the way, and one run answers every budget in every unit. With f_d(P) the cost of
stage d and histories h = (w_0, ..., w_d),

    G_d(P, h) = least cost of stages 0..d over chains with widths h that end at a partition Q >= P (coarser or equal)
              = f_d(P) + G_{d-1}(P, (w_0, ..., w_{d-1}))            if w_d = |P|
              = min over single merges P' of P of G_d(P', h)        if w_d < |P|.

Every coarser partition is reached by single merges, so S(N, k) k (k - 1) / 2 links per level suffice. Histories are
ordered by their last width first; those with w_d < k are then the first columns of those with w_d <= k.

For N = 10, D = 6 this compares 230 million numbers where enumeration has 124 billion trees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.constraints import Rules
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.partition_lattice import Lattice, lattice
from branchnet.clustering.trees.counting import stirling

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.uint8]
Tables = list[Floats]
# Numbers of a chunk: 256 KB of float64, of which two are in use at once, stay in a core's second-level cache.
_CHUNK = 1 << 15


@dataclass(frozen=True, eq=False)
class WidthTable:
    """The least cost for every vector of widths, and what is needed to find a tree that has it.

    Attributes:
        widths: (V, D), every non-decreasing vector of widths 1..N.
        costs: (V,), inf where the rules allow no tree.
        tie: costs that differ by no more than this are equal.
        slack: absolute rounding error of the costs.
        shared: the first so many stages, which the rules leave no choice, were left out of the programme.
    """

    widths: npt.NDArray[np.int64]
    costs: Floats
    tie: float
    slack: float
    shared: int
    _lattice: Lattice
    _stages: list[Tables]
    _chains: list[Tables]

    @property
    def tolerance(self) -> float:
        """By how much costs may differ and still count as equal."""
        return self.tie + self.slack

    def labels(self, row: int, ceiling: float) -> list[tuple[int, ...]]:
        """Cluster numbers, per stage, of the first tree in canonical order with `widths[row]` and no higher cost."""
        widths = self.widths[row, self.shared :].tolist()
        column = row - _histories(widths[-1] - 1, len(widths))
        last = self._stages[-1][widths[-1]]
        values = last if len(widths) == 1 else self._chains[-1][widths[-1]][:, column] + last
        # What the rest of the tree may cost: the ceiling less the stages that are settled.
        left = float(values.min()) + max(ceiling - float(self.costs[row]), 0.0)
        places = [int(np.flatnonzero(values <= left)[0])]
        left -= float(last[places[-1]])
        for stage in range(len(widths) - 2, -1, -1):
            places.append(self._coarser(stage, widths[stage + 1], widths[stage], places[-1], column, left))
            left -= float(self._stages[stage][widths[stage]][places[-1]])
            column -= _histories(widths[stage] - 1, stage + 1)
        strings = [self._lattice.strings[w][:, p] for w, p in zip(widths, reversed(places), strict=True)]
        shared = [(0,) * self._lattice.n] * self.shared
        return shared + [tuple(string.tolist()) for string in strings]

    def _coarser(self, stage: int, level: int, goal: int, place: int, column: int, left: float) -> int:
        """Trace the merges that cost no more than what is left back from `level` to the `goal` level."""
        chains = self._chains[stage]
        most = max(left, float(chains[level][place, column])) + self.slack
        places = np.array([place])
        for k in range(level, goal, -1):
            places = np.unique(self._lattice.merges[k][places])
            values = chains[k - 1][places, column]
            places = places[values <= most]
        return int(places[0])


def work(n: int, depth: int) -> tuple[int, int]:
    """Numbers compared, and bytes held, by `width_table`."""
    compared = held = 0
    for k in range(1, n + 1):
        partitions, pairs = stirling(n, k), k * (k - 1) // 2
        held += partitions * (4 * pairs + n + 4 * k + 8 * depth)
        for d in range(depth - 1):
            compared += partitions * pairs * _histories(k - 1, d + 1)
            held += 8 * partitions * _histories(k, d + 1)
    return compared, held


def width_table(losses: StageLosses, rules: Rules, deadline: Deadline | None = None) -> WidthTable:
    """Solve for all vectors of widths at once.

    Raises:
        OutOfTime: the deadline has passed.
    """
    deadline = deadline or Deadline()
    n, depth = len(losses.tasks), losses.depth
    shared = forced_stages(rules)
    grid = lattice(n)
    stages = [stage_costs(losses, rules, grid, d) for d in range(shared, depth)]
    chains: list[Tables] = []
    below = [np.zeros((level.shape[1], 1)) for level in grid.strings]
    deadline.begin("solving exactly", work(n, depth - shared)[0])
    for d in range(depth - shared - 1):
        below = _chain_costs(grid, below, stages[d], d, deadline)
        chains.append(below)
    costs = np.concatenate([_least(below[k], stages[-1][k]) for k in range(1, n + 1)])
    fixed = math.fsum(losses.stage_cost(d, [range(n)]) for d in range(shared))
    largest = [max(_largest_finite(level) for level in stage[1:]) for stage in stages]
    # Each sum of D terms rounds by a few units in the last place (1e-16) of its largest term.
    slack = 1e-15 * math.fsum([*largest, abs(fixed), abs(losses.offset)])
    return WidthTable(
        widths=width_vectors(n, depth - shared, shared),
        costs=costs + fixed + losses.offset,
        tie=losses.tie,
        slack=slack,
        shared=shared,
        _lattice=grid,
        _stages=stages,
        _chains=chains,
    )


def best_groupings(losses: StageLosses, rules: Rules) -> list[tuple[float, Strings]]:
    """For every number of whole networks the least cost and its groups: trees whose stages all have one partition."""
    grid = lattice(len(losses.tasks))
    stages = [stage_costs(losses, rules, grid, d) for d in range(losses.depth)]
    found = []
    for k in range(1, grid.n + 1):
        totals = np.sum([stage[k] for stage in stages], axis=0) + losses.offset
        place = int(np.flatnonzero(totals <= totals.min() + losses.tie)[0])
        if np.isfinite(totals[place]):
            found.append((float(totals[place]), grid.strings[k][:, place]))
    return found


def forced_stages(rules: Rules) -> int:
    """Number of first stages that must be shared by all tasks, the last stage not counted.

    They have one partition, so leaving them out of the programme makes histories shorter and changes nothing.
    """
    depth = len(rules.max_width)
    return next((d for d in range(depth - 1) if rules.max_width[d] > 1), depth - 1)


def stage_costs(losses: StageLosses, rules: Rules, grid: Lattice, stage: int) -> Tables:
    """Cost of a stage at every partition, level by level; inf where the rules do not allow it."""
    values = cluster_values(losses.pairs[stage], losses.kind)
    values[~rules.allowed_clusters(stage)] = np.inf
    levels = [np.zeros(0)]
    for k in range(1, grid.n + 1):
        total = values[grid.masks[k][0]]
        for masks in grid.masks[k][1:]:
            total = total + values[masks]
        if not rules.min_width[stage] <= k <= rules.max_width[stage]:
            total = np.full_like(total, np.inf)
        levels.append(total * losses.scale(k))
    return levels


def _chain_costs(grid: Lattice, below: Tables, stage: Tables, d: int, deadline: Deadline) -> Tables:
    """`G_d` from `G_{d-1}`, level by level."""
    chains = [np.zeros((0, 0))]
    for k in range(1, grid.n + 1):
        inherited = _histories(k - 1, d + 1)
        level = np.empty((len(stage[k]), inherited + below[k].shape[1]))
        np.add(below[k], stage[k][:, None], out=level[:, inherited:])
        if inherited:
            _least_merge(chains[k - 1], grid.merges[k], level[:, :inherited], deadline)
        chains.append(level)
    return chains


def _least_merge(coarser: Floats, merges: npt.NDArray[np.int32], out: Floats, deadline: Deadline) -> None:
    """`out[p] = min over columns c of coarser[merges[p, c]]`, in chunks that stay in the processor's cache."""
    rows = max(1, _CHUNK // out.shape[1])
    chunk = np.empty((rows, out.shape[1]))
    least = np.empty_like(chunk)
    for start in range(0, len(out), rows):
        links = merges[start : start + rows]
        size = len(links)
        # mode="clip": with the default, numpy buffers `out` to leave it untouched where an index is out of range.
        np.take(coarser, links[:, 0], axis=0, out=least[:size], mode="clip")
        for column in range(1, links.shape[1]):
            np.take(coarser, links[:, column], axis=0, out=chunk[:size], mode="clip")
            np.minimum(least[:size], chunk[:size], out=least[:size])
        out[start : start + size] = least[:size]
        deadline.step(links.size * out.shape[1])


def _least(chains: Floats, stage: Floats) -> Floats:
    """`min over p of chains[p, :] + stage[p]` without a copy of the whole table."""
    rows = max(1, _CHUNK // chains.shape[1])
    best = np.full(chains.shape[1], np.inf)
    for start in range(0, len(stage), rows):
        chunk = chains[start : start + rows] + stage[start : start + rows, None]
        np.minimum(best, chunk.min(axis=0), out=best)
    return best


def _histories(k: int, length: int) -> int:
    """Number of non-decreasing vectors of `length` widths out of 1..k."""
    return math.comb(k + length - 1, length) if k > 0 else 0


def width_vectors(n: int, depth: int, shared: int = 0) -> npt.NDArray[np.int64]:
    """Every non-decreasing vector of `depth` widths 1..n, after `shared` ones; ordered from the last width on."""
    return np.array([(1,) * shared + widths for widths in _vectors(n, depth)], dtype=np.int64)


def _vectors(k: int, length: int) -> Iterator[tuple[int, ...]]:
    """Non-decreasing vectors of widths 1..k, ordered by the last width, then by the one before it, and so on."""
    if length == 0:
        yield ()
        return
    for last in range(1, k + 1):
        for head in _vectors(last, length - 1):
            yield (*head, last)


def _largest_finite(values: Floats) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def cluster_values(pairs: Floats, kind: str) -> Floats:
    """Value of every cluster of N tasks, (2^N,), indexed by bit mask; pairs (N, N)."""
    n = len(pairs)
    if kind == "medoid":
        return _medoid_values(pairs)
    join = np.maximum if kind == "max" else np.add
    empty = -np.inf if kind == "max" else 0.0
    values = np.full(1 << n, empty)
    # Masks with `task` as their highest bit follow from those without it: 2^N values in N^2 vector operations.
    for task in range(n):
        links = np.full(1 << task, empty)
        for other in range(task):
            half = 1 << other
            links[half : 2 * half] = join(links[:half], pairs[task, other])
        half = 1 << task
        values[half : 2 * half] = join(values[:half], links)
    sizes = _bit_counts(n)
    values[sizes < 2] = 0.0
    # The mean loss to the others, summed over tasks, counts each pair twice.
    return 2.0 * values / np.maximum(sizes - 1, 1) if kind == "mean" else values


def _medoid_values(pairs: Floats) -> Floats:
    """Rows of `pairs` are the representatives'."""
    n = len(pairs)
    best = np.full(1 << n, np.inf)
    members = np.arange(1 << n)
    for medoid in range(n):
        sums = np.zeros(1 << n)
        for other in range(n):
            half = 1 << other
            sums[half : 2 * half] = sums[:half] + pairs[medoid, other]
        inside = (members >> medoid) & 1 == 1
        best[inside] = np.minimum(best[inside], sums[inside])
    best[_bit_counts(n) < 2] = 0.0
    return best


def _bit_counts(n: int) -> npt.NDArray[np.int64]:
    counts = np.zeros(1 << n, np.int64)
    for task in range(n):
        half = 1 << task
        counts[half : 2 * half] = counts[:half] + 1
    return counts
