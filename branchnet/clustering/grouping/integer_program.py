"""The integer programme behind task grouping: choose groups within a budget, each task takes its best chosen group.

Variables: y_m = group m is chosen, x_{m,i} = group m serves task i. Minimise sum w_i L_{m,i} x_{m,i} subject to
sum_m x_{m,i} = 1, x_{m,i} <= y_m, sum_m c_m y_m <= budget (Standley et al. 2020). Solved by HiGHS without an
optimality gap; losses and costs are scaled so that its absolute tolerance of 1e-6 is a relative 1e-9 of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

Floats = npt.NDArray[np.float64]
Chosen = tuple[int, ...]
RELATIVE_TIE = 1e-9
_SCALE = 1e3  # 1e-6 of HiGHS over 1e3 is RELATIVE_TIE


@dataclass(frozen=True, eq=False)
class Groups:
    """Candidate groups.

    Attributes:
        losses: (M, N) weighted loss of each task in each group; inf where the task is not in it.
        costs: (M,).
        partition: whether the chosen groups must hold every task exactly once.
    """

    losses: Floats
    costs: Floats
    partition: bool = False

    def total(self, chosen: Chosen) -> float:
        """Loss of a choice, each task served by its best chosen group."""
        return math.fsum(self.losses[list(chosen)].min(axis=0))

    def cost(self, chosen: Chosen) -> float:
        """Cost of a choice."""
        return math.fsum(self.costs[list(chosen)])

    def servers(self, chosen: Chosen) -> list[int]:
        """For each task the chosen group that serves it: the best, of equals the cheaper, then the first."""
        return [
            min(chosen, key=lambda m, i=i: (self.losses[m, i], self.costs[m], m))  # type: ignore[misc]
            for i in range(self.losses.shape[1])
        ]


def best_choice(groups: Groups, budget: float) -> Chosen | None:
    """A choice of least loss, of equals one of least cost; None where nothing fits."""
    programme = _Programme(groups, budget)
    first = programme.least(programme.losses)
    if first is None:
        return None
    limited = _Programme(groups, budget, largest_loss=groups.total(first))
    return limited.least(limited.costs) or first


def all_best_choices(groups: Groups, budget: float) -> list[Chosen]:
    """All choices with the least loss and, among those, the least cost; in lexicographic order."""
    first = best_choice(groups, budget)
    if first is None:
        return []
    found = [first]
    cheapest = min(budget, groups.cost(first))
    programme = _Programme(groups, cheapest, largest_loss=groups.total(first))
    while True:
        programme.exclude(found[-1])
        other = programme.least(programme.costs)
        if other is None:
            return sorted(found)
        found.append(other)


def front(groups: Groups, largest: float = math.inf) -> list[Chosen]:
    """Every trade between cost and loss, from the cheapest choice to the one of least loss."""
    choices = []
    budget = min(largest, math.fsum(groups.costs))
    while (choice := best_choice(groups, budget)) is not None:
        choices.append(choice)
        # Below the last cost by more than the solver's tolerance; 1e-300 for a cost of 0, after which nothing is
        # cheaper.
        budget = groups.cost(choice) * (1 - 2 * RELATIVE_TIE) - 1e-300
    return choices[::-1]


class _Programme:
    """The integer programme in HiGHS's form."""

    def __init__(self, groups: Groups, budget: float, largest_loss: float | None = None) -> None:
        self._groups = groups
        self._pairs = np.argwhere(np.isfinite(groups.losses))
        self._m, self._x = len(groups.costs), len(self._pairs)
        served = groups.losses[self._pairs[:, 0], self._pairs[:, 1]]
        self.losses = np.concatenate([np.zeros(self._m), served * _scale(served)])
        self.costs = np.concatenate([groups.costs * _scale(groups.costs), np.zeros(self._x)])
        self._rows = [self._serve_once(), self._serve_if_chosen()]
        capacity = min(budget, math.fsum(groups.costs)) * _scale(groups.costs)
        self._bound(self.costs, capacity)
        if largest_loss is not None:
            self._bound(self.losses, largest_loss * _scale(served))
        if groups.partition:
            self._rows.append(self._held_once())

    def _bound(self, row: Floats, largest: float) -> None:
        from scipy.optimize import LinearConstraint

        slack = RELATIVE_TIE * max(abs(largest), 1.0)
        self._rows.append(LinearConstraint(row[None], ub=largest + slack))

    def _serve_once(self) -> LinearConstraint:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import csr_array

        n = self._groups.losses.shape[1]
        columns = self._m + np.arange(self._x)
        rows = csr_array((np.ones(self._x), (self._pairs[:, 1], columns)), shape=(n, self._m + self._x))
        return LinearConstraint(rows, 1, 1)

    def _serve_if_chosen(self) -> LinearConstraint:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import csr_array

        place = np.arange(self._x)
        data = np.concatenate([np.ones(self._x), -np.ones(self._x)])
        columns = np.concatenate([self._m + place, self._pairs[:, 0]])
        rows = csr_array((data, (np.concatenate([place, place]), columns)), shape=(self._x, self._m + self._x))
        return LinearConstraint(rows, ub=0)

    def _held_once(self) -> LinearConstraint:
        from scipy.optimize import LinearConstraint

        held = np.isfinite(self._groups.losses).T.astype(float)
        return LinearConstraint(np.concatenate([held, np.zeros((len(held), self._x))], axis=1), 1, 1)

    def exclude(self, chosen: Sequence[int]) -> None:
        """Forbid exactly this choice."""
        from scipy.optimize import LinearConstraint

        # sum over others of y - sum over chosen of y >= 1 - |chosen|: only this choice gives -|chosen|.
        row = np.concatenate([np.ones(self._m), np.zeros(self._x)])
        row[list(chosen)] = -1
        self._rows.append(LinearConstraint(row[None], lb=1 - len(chosen)))

    def least(self, goal: Floats) -> Chosen | None:
        """The choice that minimises `goal`; None where there is none."""
        from scipy.optimize import Bounds, milp

        integral = np.ones(self._m + self._x)
        answer = milp(
            goal, integrality=integral, bounds=Bounds(0, 1), constraints=self._rows, options={"mip_rel_gap": 0.0}
        )
        if answer.status == 2:
            return None
        if answer.x is None:
            raise RuntimeError(f"HiGHS gave up: {answer.message}")
        return tuple(np.flatnonzero(answer.x[: self._m] > 0.5).tolist())


def _scale(numbers: Floats) -> float:
    largest = float(np.abs(numbers).max(initial=0.0))
    return _SCALE / largest if largest else 1.0
