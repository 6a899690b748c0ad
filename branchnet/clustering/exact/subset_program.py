"""The cheapest tree under budgets of which some count what a subset of the tasks needs alone, exactly, for few tasks.

What a subset needs depends on which clusters its tasks are in, not on widths alone. So the states are partitions. With
f_d(P) the cost of stage d, s_d(P) its shares of the limits and weights u >= 0 of these, one pass gives

    G_d(P) = least of f + u s, summed over stages 0..d, over chains that end at a partition Q >= P (coarser or equal),

and G_{D-1} of N clusters less the sum of u is below the cost of every tree that fits, whatever u is. Subgradient steps
raise that bound. Then chains are built from the last stage to the first; one that its G cannot complete below the cost
of a known tree or within a limit, or that another one with the same place is as good as, is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.partition_lattice import Lattice

Floats = npt.NDArray[np.float64]
Levels = list[Floats]
Place = tuple[int, int]
_ROOM = 1 + 1e-12
_ROUNDS = 60
# Sums over stages round in the last digits; a bound must not end above the cost that it bounds.
_SLACK = 1e-12


class Entry(NamedTuple):
    """The last stages of a tree: their cost, their shares of the limits, and the places of their partitions."""

    cost: float
    sizes: tuple[float, ...]
    chain: tuple[Place, ...]


class TooLong(Exception):
    """More chains than were allowed."""


@dataclass(frozen=True, eq=False)
class SubsetLimit:
    """One limit.

    Attributes:
        members: numbers of the tasks that count.
        shares: (D, N + 1) of the limit that so many copies of a stage take.
    """

    members: tuple[int, ...]
    shares: Floats


@dataclass(frozen=True, eq=False)
class SubsetTables:
    """Every stage at every partition.

    Attributes:
        grid: the partitions.
        costs: per stage and level the costs, (S,); inf where a partition is not allowed or takes more than a limit.
        sizes: per stage and level the shares of the limits, (limits, S); at most 1.
    """

    grid: Lattice
    costs: list[Levels]
    sizes: list[Levels]

    @property
    def limits(self) -> int:
        """Number of limits."""
        return int(self.sizes[0][1].shape[0])

    def weighted(self, weights: Floats) -> list[Levels]:
        """Costs plus weighted shares, per stage and level."""
        return [
            [costs + weights @ sizes for costs, sizes in zip(levels, shares, strict=True)]
            for levels, shares in zip(self.costs, self.sizes, strict=True)
        ]

    def without_costs(self) -> SubsetTables:
        """The same with a cost of 0 for every partition that is allowed."""
        costs = [[np.where(np.isfinite(level), 0.0, np.inf) for level in levels] for levels in self.costs]
        return SubsetTables(self.grid, costs, self.sizes)


def subset_tables(grid: Lattice, costs: Sequence[Levels], limits: Sequence[SubsetLimit]) -> SubsetTables:
    """The tables of stages whose costs are given for every partition.

    Args:
        grid: the partitions.
        costs: per stage and level, inf where the rules do not allow a partition.
        limits: the limits, at least one; members are numbers of the grid's tasks.
    """
    sizes = [_stage_sizes(grid, limits, d) for d in range(len(costs))]
    known: list[Levels] = []
    for levels, shares in zip(costs, sizes, strict=True):
        known.append(
            [np.where((share > _ROOM).any(axis=0), np.inf, c) for c, share in zip(levels, shares, strict=True)]
        )
    return SubsetTables(grid, known, [[np.minimum(share, _ROOM) for share in shares] for shares in sizes])


def _stage_sizes(grid: Lattice, limits: Sequence[SubsetLimit], stage: int) -> Levels:
    levels = [np.zeros((len(limits), 0))]
    for k in range(1, grid.n + 1):
        rows = []
        for limit in limits:
            subset = sum(1 << member for member in limit.members)
            touched = np.sum((grid.masks[k] & subset) != 0, axis=0)
            rows.append(limit.shares[stage][touched])
        levels.append(np.array(rows))
    return levels


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A lower bound on the cost of trees that fit; inf if there is none.

    Attributes:
        bound: the bound.
        weights: of the limits.
        prefixes: per stage and level the least sum of costs and weighted shares up to that stage.
    """

    bound: float
    weights: Floats
    prefixes: list[Levels]


def relaxed(tables: SubsetTables, target: float, deadline: Deadline) -> Relaxed:
    """The best bound that subgradient steps towards the cost of a known tree find.

    Args:
        tables: the stages.
        target: cost of a known tree, or what the bound is worth at most.
        deadline: raises OutOfTime.
    """
    weights, factor, idle = np.zeros(tables.limits), 1.0, 0
    best: Relaxed | None = None
    for _ in range(_ROUNDS):
        deadline.step(0)
        stages = tables.weighted(weights)
        prefixes = _prefixes(tables.grid, stages)
        total = float(prefixes[-1][-1][0])
        if not np.isfinite(total):
            return Relaxed(np.inf, weights, prefixes)
        value = total - float(weights.sum()) - _SLACK * (abs(total) + float(weights.sum()))
        if best is None or value > best.bound:
            idle = idle if best is not None and value < best.bound + 1e-3 * (target - best.bound) else 0
            best = Relaxed(value, weights, prefixes)
        idle += 1
        if idle > 4:
            factor, idle = factor / 2, 0
        excess = _cheapest_sizes(tables, stages, prefixes) - 1.0
        excess[(weights == 0) & (excess < 0)] = 0.0
        steepness = float(excess @ excess)
        if steepness == 0.0 or best.bound >= target:
            break
        weights = np.maximum(weights + factor * max(target - value, 0.0) / steepness * excess, 0.0)
    assert best is not None
    return best


def _prefixes(grid: Lattice, stages: Sequence[Levels]) -> list[Levels]:
    found: list[Levels] = []
    for d, stage in enumerate(stages):
        chain = [np.zeros(0)]
        for k in range(1, grid.n + 1):
            own = stage[k] + found[d - 1][k] if d else stage[k]
            chain.append(own if k == 1 else np.minimum(own, chain[k - 1][grid.merges[k]].min(axis=1)))
        found.append(chain)
    return found


def _cheapest_sizes(tables: SubsetTables, stages: Sequence[Levels], prefixes: Sequence[Levels]) -> Floats:
    """The shares of the limits that the tree of least weighted cost takes."""
    k, p, total = tables.grid.n, 0, np.zeros(tables.limits)
    for d in range(len(stages) - 1, -1, -1):
        while k > 1 and prefixes[d][k][p] < stages[d][k][p] + (prefixes[d - 1][k][p] if d else 0.0):
            merged = tables.grid.merges[k][p]
            k, p = k - 1, int(merged[prefixes[d][k - 1][merged].argmin()])
        total += tables.sizes[d][k][:, p]
    return total


def least_shares(tables: SubsetTables) -> Floats:
    """The least share of each limit that a tree takes which no stage alone takes beyond a limit; inf without one."""
    return np.array([float(prefixes[-1][-1][0]) for prefixes in _size_prefixes(tables)])


def _size_prefixes(tables: SubsetTables) -> list[list[Levels]]:
    free = tables.without_costs()
    return [_prefixes(tables.grid, free.weighted(unit)) for unit in np.eye(tables.limits)]


def cheapest_chains(
    tables: SubsetTables, known: Relaxed, most: float, deadline: Deadline, steps: float = np.inf
) -> list[tuple[float, tuple[float, ...], npt.NDArray[np.int64]]]:
    """Cost, shares of the limits and cluster numbers (D, N) of every tree up to a cost that no other is as good as.

    Args:
        tables: the stages.
        known: bounds that drop chains.
        most: the largest cost.
        deadline: raises OutOfTime.
        steps: how many chains may be held in all.

    Raises:
        TooLong: there are more.
    """
    grid, bounds = tables.grid, _Completions(tables, known, most)
    opened: dict[Place, list[Entry]] = {(grid.n, 0): [Entry(0.0, (0.0,) * tables.limits, ())]}
    for d in range(len(tables.costs) - 1, -1, -1):
        levels: list[dict[int, list[Entry]]] = [{} for _ in range(grid.n + 1)]
        for (k, p), entries in opened.items():
            levels[k][p] = entries
        opened = {}
        for k in range(grid.n, 0, -1):
            for p, arrived in levels[k].items():
                deadline.step(0)
                entries = _undominated(arrived)
                steps -= len(entries)
                if steps < 0:
                    raise TooLong
                if grown := bounds.extended(entries, d, (k, p)):
                    opened[k, p] = grown
                for q in grid.merges[k][p].tolist() if k > 1 else ():
                    if passing := bounds.possible(entries, d, (k - 1, q)):
                        levels[k - 1].setdefault(q, []).extend(passing)
    best = _undominated([entry for entries in opened.values() for entry in entries])
    return [(entry.cost, entry.sizes, _labels(grid, entry.chain)) for entry in best]


class _Completions:
    """What the first stages need at least, after the last ones."""

    def __init__(self, tables: SubsetTables, known: Relaxed, most: float) -> None:
        self._tables, self._weights, self._prefixes = tables, known.weights.tolist(), known.prefixes
        total = float(known.weights.sum())
        # Finite, for what no tree completes is infinite.
        self._room = min(most + total + _SLACK * (abs(most) + total), float(np.finfo(np.float64).max))
        self._sizes = _size_prefixes(tables)

    def possible(self, entries: Sequence[Entry], stage: int, place: Place) -> list[Entry]:
        """The entries of which stages 0..`stage` can be completed with partitions as coarse as that of a place."""
        if stage < 0:
            return [entry for entry in entries if max(entry.sizes) <= _ROOM and self._weighted(entry) <= self._room]
        k, p = place
        least = float(self._prefixes[stage][k][p])
        sizes = [float(prefixes[stage][k][p]) for prefixes in self._sizes]
        return [
            entry
            for entry in entries
            if all(used + more <= _ROOM for used, more in zip(entry.sizes, sizes, strict=True))
            and self._weighted(entry) + least <= self._room
        ]

    def extended(self, entries: Sequence[Entry], stage: int, place: Place) -> list[Entry]:
        """The entries with a stage at a place, as far as they can be completed."""
        k, p = place
        cost = float(self._tables.costs[stage][k][p])
        if not np.isfinite(cost):
            return []
        added = self._tables.sizes[stage][k][:, p].tolist()
        grown = []
        for entry in entries:
            sizes = tuple(used + more for used, more in zip(entry.sizes, added, strict=True))
            grown.append(Entry(entry.cost + cost, sizes, (place, *entry.chain)))
        return self.possible(grown, stage - 1, place)

    def _weighted(self, entry: Entry) -> float:
        return entry.cost + math.fsum(weight * size for weight, size in zip(self._weights, entry.sizes, strict=True))


def _undominated(entries: list[Entry]) -> list[Entry]:
    """The entries that no other one is as good as; of equal ones the first by cost, sizes and places."""
    kept: list[Entry] = []
    for entry in sorted(entries):
        sizes = entry.sizes
        if not any(all(a <= b for a, b in zip(other.sizes, sizes, strict=True)) for other in kept):
            kept.append(entry)
    return kept


def _labels(grid: Lattice, chain: Sequence[Place]) -> npt.NDArray[np.int64]:
    return np.array([grid.strings[k][:, p] for k, p in chain], dtype=np.int64)
