"""Select, measure, select again: spend few measurements where the best selection rests on estimates.

Estimates are corrected by what was measured: the error of a task's estimate is a Gaussian process over task sets,
similar for sets that have many tasks in common. The incumbent is the best selection among measured networks. Every step
measures an estimated network of the best selection; when that holds none, of the best selection if estimates were
better by a growing margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from branchnet.clustering.grouping.network_selection import Losses, Selection, select_networks
from branchnet.errors import AffinityError, BudgetError

# By how many standard deviations estimates are taken to be better than they look, until an unmeasured network is
# chosen.
_MARGINS = (0.0, 0.5, 1.0, 2.0, 4.0)
# Usual error of an estimate before anything is measured, relative to it.
_PRIOR = 0.05
# On the diagonal of the covariance: keeps it invertible where two candidates have the same tasks.
_NOISE = 0.05


@dataclass(frozen=True)
class Refinement:
    """What `refine` found.

    Attributes:
        selection: the best selection among measured networks.
        measured: indices of the networks that were measured, in order.
        losses: the table with measurements in place of estimates.
    """

    selection: Selection
    measured: tuple[int, ...]
    losses: tuple[dict[str, float], ...]


def refine(
    losses: Losses,
    costs: Sequence[float],
    budget: float,
    measure: Callable[[int], Mapping[str, float]],
    *,
    known: Sequence[bool],
    measurements: int = 8,
    weights: Mapping[str, float] | None = None,
) -> Refinement:
    """Improve a selection that rests on estimated losses by measuring at most `measurements` networks.

    Args:
        losses: for each candidate network `{task: loss}`, measured or estimated.
        costs: cost of each candidate.
        budget: largest sum of costs.
        measure: trains or looks up candidate m and returns its losses `{task: loss}`.
        known: for each candidate whether its losses are measured already.
        measurements: how many calls of `measure` may be spent.
        weights: `{task: weight}` of the losses.

    Returns:
        The best selection among measured networks, and what was measured.

    Raises:
        BudgetError: nothing fits the budget, or no selection of measured networks does after all measurements.
        AffinityError: inputs that do not fit together, or a measurement without the network's tasks.

    >>> estimated = [{"depth": 1.0}, {"edges": 1.0}, {"depth": 0.7, "edges": 0.9}]
    >>> found = branchnet.refine(
    ...     estimated, [1, 1, 1], 2, lambda m: {"depth": 1.2, "edges": 1.4}, known=[True, True, False]
    ... )
    >>> found.measured, found.selection.networks              # the pair was measured, and is worse than estimated
    ((2,), (0, 1))
    """
    if len(known) != len(losses):
        raise AffinityError(f"known has {len(known)} entries; expected {len(losses)}, one per candidate")
    state = _State([dict(row) for row in losses], list(known), list(costs), budget, weights)
    spent: list[int] = []
    while len(spent) < measurements:
        candidate = state.next_candidate()
        if candidate is None:
            break
        state.record(candidate, measure(candidate))
        spent.append(candidate)
    incumbent = state.incumbent()
    if incumbent is None:
        raise BudgetError(
            f"no selection of measured networks fits the budget of {budget:g}; expected more than "
            f"measurements={measurements}"
        )
    return Refinement(incumbent, tuple(spent), tuple(state.losses))


@dataclass(eq=False)
class _State:
    losses: list[dict[str, float]]
    known: list[bool]
    costs: list[float]
    budget: float
    weights: Mapping[str, float] | None

    def __post_init__(self) -> None:
        self.estimates = [dict(row) for row in self.losses]
        self.errors: dict[str, list[tuple[frozenset[str], float]]] = {}

    def record(self, candidate: int, measured: Mapping[str, float]) -> None:
        """Put a measurement in place of the estimate."""
        missing = set(self.losses[candidate]) - set(measured)
        if missing:
            raise AffinityError(
                f"the measurement of network {candidate} lacks {', '.join(sorted(missing))}; expected a loss of each "
                "of its tasks"
            )
        for task, estimate in self.estimates[candidate].items():
            tasks = frozenset(self.estimates[candidate])
            self.errors.setdefault(task, []).append((tasks, float(measured[task]) - estimate))
        self.losses[candidate] = {task: float(measured[task]) for task in self.losses[candidate]}
        self.known[candidate] = True

    def next_candidate(self) -> int | None:
        """The unmeasured network that matters most; None where no estimate can change the selection."""
        for margin in _MARGINS:
            selection = select_networks(self._optimistic(margin), self.costs, self.budget, weights=self.weights)
            unknown = [m for m in selection.networks if not self.known[m]]
            if unknown:
                served = list(selection.assignment.values())
                return max(unknown, key=lambda m: (served.count(m), -m))
        return None

    def _optimistic(self, margin: float) -> list[dict[str, float]]:
        """Measured losses, and corrected estimates lowered by `margin` times their usual error."""
        return [
            row
            if known
            else {task: self._corrected(task, loss, frozenset(estimate), margin) for task, loss in estimate.items()}
            for row, known, estimate in zip(self.losses, self.known, self.estimates, strict=True)
        ]

    def _corrected(self, task: str, estimate: float, tasks: frozenset[str], margin: float) -> float:
        """Posterior mean of the loss, less `margin` posterior standard deviations."""
        prior = _PRIOR * abs(estimate)
        seen = self.errors.get(task, [])
        if not seen:
            return estimate - margin * prior
        sets = [group for group, _ in seen]
        errors = np.array([error for _, error in seen])
        inner = np.array([[_similarity(a, b) for b in sets] for a in sets]) + _NOISE * np.eye(len(sets))
        across = np.array([_similarity(tasks, b) for b in sets])
        scale = max(prior, float(np.sqrt(np.mean(errors**2))))
        mean = float(across @ np.linalg.solve(inner, errors))
        variance = max(1.0 - float(across @ np.linalg.solve(inner, across)), 0.0)
        return estimate + mean - margin * scale * math.sqrt(variance)

    def incumbent(self) -> Selection | None:
        """The best selection among measured networks, in the numbering of all candidates."""
        index = [m for m, known in enumerate(self.known) if known]
        tasks = {task for row in self.losses for task in row}
        if not index or {task for m in index for task in self.losses[m]} != tasks:
            return None
        try:
            found = select_networks(
                [self.losses[m] for m in index], [self.costs[m] for m in index], self.budget, weights=self.weights
            )
        except BudgetError:
            return None
        return Selection(
            networks=tuple(index[m] for m in found.networks),
            assignment={task: index[m] for task, m in found.assignment.items()},
            total_loss=found.total_loss,
            total_cost=found.total_cost,
            groups=found.groups,
        )


def _similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Correlation of the estimates' errors in two task sets: their common share of tasks."""
    return len(a & b) / len(a | b)
