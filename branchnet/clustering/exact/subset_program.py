"""The cheapest tree under budgets of which some count what a subset of the tasks needs alone, exactly, for few tasks.

What a subset needs depends on which clusters its tasks are in, not on widths alone. So the states are partitions, each
with all chains that end there and that no other one is as good as in cost and in every size:

    F_d(P) = the chains of C_{d-1}(P), each with stage d at P;
    C_d(P) = the best of F_d(P) and of C_d(P') over single merges P' of P (coarser partitions, which P refines).

A chain that cannot be completed within the limits is dropped at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.constraints import Rules
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.dynamic_program import stage_costs
from branchnet.clustering.exact.partition_lattice import Lattice, lattice

Floats = npt.NDArray[np.float64]
Place = tuple[int, int]
Entry = tuple[float, tuple[float, ...], tuple[Place, ...]]
_ROOM = 1 + 1e-12
MOST_TASKS = 7
"""At 7 tasks there are 877 partitions, each with tens of chains."""


@dataclass(frozen=True, eq=False)
class SubsetLimit:
    """One limit.

    Attributes:
        members: numbers of the tasks that count.
        shares: (D, N + 1) of the limit that so many copies of a stage take.
    """

    members: tuple[int, ...]
    shares: Floats


def cheapest_chains(
    losses: StageLosses, rules: Rules, limits: Sequence[SubsetLimit], deadline: Deadline
) -> list[tuple[float, tuple[float, ...], npt.NDArray[np.int64]]]:
    """Cost, sizes as shares of the limits, and cluster numbers (D, N) of every tree that no other one is as good as.

    Args:
        losses: the objective.
        rules: the constraints.
        limits: the limits; every one must be met.
        deadline: raises OutOfTime.
    """
    grid = lattice(len(losses.tasks))
    rest = _least_rest(limits, losses.depth)
    places = [(k, p) for k in range(1, grid.n + 1) for p in range(grid.strings[k].shape[1])]
    closed: dict[Place, list[Entry]] = {place: [(0.0, (0.0,) * len(limits), ())] for place in places}
    for d in range(losses.depth):
        costs, sizes = stage_costs(losses, rules, grid, d), _stage_sizes(grid, limits, d)
        found: dict[Place, list[Entry]] = {}
        for place in places:
            k, p = place
            own = _extended(closed[place], place, float(costs[k][p]), sizes[k][:, p], rest[d])
            coarser = (
                {entry for merged in grid.merges[k][p].tolist() for entry in found[k - 1, merged]} if k > 1 else ()
            )
            found[place] = _undominated([*own, *coarser])
            deadline.step(0)
        closed = found
    best = _undominated(list({entry for entries in closed.values() for entry in entries}))
    return [(cost + losses.offset, sizes, _labels(grid, chain)) for cost, sizes, chain in best]


def _least_rest(limits: Sequence[SubsetLimit], depth: int) -> list[tuple[float, ...]]:
    """For each stage what the stages after it need at least."""
    least = np.array([limit.shares[:, 1:].min(axis=1) for limit in limits])
    return [tuple(least[:, d + 1 :].sum(axis=1).tolist()) for d in range(depth)]


def _stage_sizes(grid: Lattice, limits: Sequence[SubsetLimit], stage: int) -> list[Floats]:
    """Per level the shares of each limit, (limits, partitions)."""
    levels = [np.zeros((len(limits), 0))]
    for k in range(1, grid.n + 1):
        rows = []
        for limit in limits:
            subset = sum(1 << member for member in limit.members)
            touched = np.sum((grid.masks[k] & subset) != 0, axis=0)
            rows.append(limit.shares[stage][touched])
        levels.append(np.array(rows))
    return levels


def _extended(
    entries: Sequence[Entry], place: Place, cost: float, sizes: Floats, rest: tuple[float, ...]
) -> list[Entry]:
    if not np.isfinite(cost):
        return []
    added = sizes.tolist()
    grown: list[Entry] = []
    for before, used, chain in entries:
        now = tuple(a + b for a, b in zip(used, added, strict=True))
        if all(size + more <= _ROOM for size, more in zip(now, rest, strict=True)):
            grown.append((before + cost, now, (*chain, place)))
    return grown


def _undominated(entries: list[Entry]) -> list[Entry]:
    """The entries that no other one is as good as; of equal ones the first by cost, sizes and places."""
    kept: list[Entry] = []
    for entry in sorted(entries):
        sizes = entry[1]
        if not any(all(a <= b for a, b in zip(other[1], sizes, strict=True)) for other in kept):
            kept.append(entry)
    return kept


def _labels(grid: Lattice, chain: Sequence[Place]) -> npt.NDArray[np.int64]:
    return np.array([grid.strings[k][:, p] for k, p in chain], dtype=np.int64)
