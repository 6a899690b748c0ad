"""Search for many tasks: good starts, descent, and rounds that leave a local optimum by overdrawing the budget.

A round takes one of the best moves that do not fit the budget, pays back by the moves that lose least per size saved,
and descends again; the best tree is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from branchnet.clustering.budgets.further_limits import mixtures
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.heuristics.initial_trees import start_trees
from branchnet.clustering.heuristics.local_search import Labels, Landscape, Moves, apply_move, descend, price_moves

_STARTS = 3
# A round takes one of the 40 best moves at random: enough that rounds differ, few enough that it is a good one.
_CHOICES = 40
# Every repair shrinks the tree, so it ends by itself; the limit guards against moves that save next to nothing.
_REPAIRS = 200


@dataclass(frozen=True, eq=False)
class Found:
    """The best tree of a heuristic search; `stopped` says what ended it early, if anything did."""

    labels: Labels
    stopped: str


def heuristic_search(
    land: Landscape,
    deadline: Deadline,
    *,
    seed: int,
    rounds: int | None = None,
    start: Labels | None = None,
    starts: list[Labels] | None = None,
) -> Found | None:
    """The best tree found from several starts; None if no start fits the budget and the rules.

    `starts` are taken in place of those that widths are chosen for, and `start` is added.
    """
    starts = list(fitting_trees(land)) if starts is None else starts
    if start is not None:
        starts.append(start)
    if not starts:
        return None
    starts.sort(key=land.cost)
    seen = _Candidates(land, starts)
    n = len(land.losses.tasks)
    # Pricing all moves takes time as N^2 (sets times clusters), so the time of all rounds stays about the same.
    rounds = max(4, min(40, 64_000 // n**2)) if rounds is None else rounds
    generator = np.random.default_rng(seed)
    try:
        deadline.begin("searching trees", _STARTS + rounds)
        for candidate in _distinct(starts)[:_STARTS]:
            seen.add(descend(land, candidate, deadline=deadline)[0])
            deadline.step()
        for _ in range(rounds):
            other = _repaired(land, _overdrawn(land, seen.best, generator))
            if other is not None:
                seen.add(descend(land, other, deadline=deadline)[0])
            deadline.step()
    except OutOfTime:
        return Found(seen.best, "stopped at the time limit")
    except KeyboardInterrupt:
        return Found(seen.best, "interrupted")
    return Found(seen.best, "")


def fitting_trees(land: Landscape) -> Iterator[Labels]:
    """Trees to start from that fit all budgets."""
    yield from start_trees(land.losses, land.rules, land.sizes, land.limit)
    for table in mixtures(land.shares) if land.shares is not None else ():
        for labels in start_trees(land.losses, land.rules, table, 1.0):
            if land.size(labels) <= 1 + 1e-12:
                yield labels


class _Candidates:
    """The trees found so far; ties in cost go to the smaller size, as in all methods, then to the earlier tree."""

    def __init__(self, land: Landscape, labels: list[Labels]) -> None:
        self._land = land
        self._found = [(land.cost(one), land.size(one), one) for one in labels]

    def add(self, labels: Labels) -> None:
        self._found.append((self._land.cost(labels), self._land.size(labels), labels))

    @property
    def best(self) -> Labels:
        ceiling = min(cost for cost, _, _ in self._found) + self._land.losses.tie
        tied = [(size, labels) for cost, size, labels in self._found if cost <= ceiling]
        smallest = min(size for size, _ in tied)
        return next(labels for size, labels in tied if size <= smallest * (1 + 1e-12))


def _distinct(starts: list[Labels]) -> list[Labels]:
    return list({labels.tobytes(): labels for labels in starts}.values())


def _overdrawn(land: Landscape, labels: Labels, generator: np.random.Generator) -> Labels:
    """The tree after one of the moves with the best cost, whatever its size."""
    moves = price_moves(land, labels)
    ranked = sorted(
        (float(costs.flat[place]), t, int(place))
        for t, costs in enumerate(moves.costs)
        for place in np.argpartition(costs, min(_CHOICES, costs.size - 1), axis=None)[:_CHOICES]
    )
    possible = [entry for entry in ranked[:_CHOICES] if np.isfinite(entry[0])]
    if not possible:
        return labels
    _, t, place = possible[int(generator.integers(len(possible)))]
    return _apply_place(labels, moves, t, place)


def _repaired(land: Landscape, labels: Labels) -> Labels | None:
    """Bring a tree under the budget by the moves that lose least per size saved."""
    for _ in range(_REPAIRS):
        size = land.size(labels)
        if size <= land.limit * (1 + 1e-12):
            return labels
        cost = land.cost(labels)
        moves = price_moves(land, labels)
        rates = [_rates(costs, sizes, cost, size) for costs, sizes in zip(moves.costs, moves.sizes, strict=True)]
        t = min(range(len(rates)), key=lambda t: float(rates[t].min()))
        if not np.isfinite(rates[t].min()):
            return None
        labels = _apply_place(labels, moves, t, int(rates[t].argmin()))
    return None


def _rates(costs: np.ndarray, sizes: np.ndarray, cost: float, size: float) -> np.ndarray:
    saved = size - sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((saved > 1e-12 * size) & np.isfinite(costs), (costs - cost) / saved, np.inf)


def _apply_place(labels: Labels, moves: Moves, t: int, place: int) -> Labels:
    s, cluster = divmod(place, moves.costs[t].shape[1])
    return apply_move(labels, moves, s, t, cluster)
