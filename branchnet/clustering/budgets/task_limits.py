"""Budgets for some of the tasks: what counts towards them, and the least that any tree needs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.tree_sizes import (
    TOLERANCE,
    CostsByUnit,
    HeadCostsByUnit,
    SizeModel,
    fits,
    subset_model,
)
from branchnet.clustering.constraints import Rules
from branchnet.clustering.search_result import Resource
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BudgetError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TaskLimit:
    """A budget, and what counts towards it.

    Attributes:
        budget: as it was written.
        sizes: with the heads of `tasks` alone.
        limit: the largest size.
        tasks: those that count.
        members: their numbers among all tasks.
    """

    budget: Budget
    sizes: SizeModel
    limit: float
    tasks: tuple[str, ...]
    members: tuple[int, ...]

    def size(self, tree: Tree) -> float:
        """What these tasks need of a tree."""
        widths = [len({tree.cluster_of(task, d) for task in self.tasks}) for d in range(tree.depth)]
        return self.sizes.of_widths(widths)

    def fits(self, tree: Tree) -> bool:
        """Whether a tree meets it."""
        return bool(fits(self.size(tree), self.limit))

    def resource(self, tree: Tree) -> Resource:
        """What these tasks need of a tree, next to the limit."""
        return Resource(self.sizes.unit, self.size(tree), self.limit, self.budget.tasks)

    def shares(self) -> Floats:
        """Stages as shares of the limit less the heads; if nothing is left, stages of size 0 fit."""
        table = self.sizes.table
        # Shares are compared with 1 + TOLERANCE, so that sizes with the heads are with as much of the whole limit.
        room = (self.limit + TOLERANCE * abs(self.limit) - self.sizes.fixed) / (1 + TOLERANCE)
        if room > 0:
            return np.asarray(table / room)
        if fits(self.sizes.fixed, self.limit):
            return np.where(table > 0, np.inf, 0.0)
        return np.full_like(table, np.inf)

    def least(self, rules: Rules | None = None) -> float:
        """No tree needs less: the sum over stages of the cheapest numbers of nodes that do not fall.

        Without rules, and under those on widths and the first and last stages, a tree needs no more.
        """
        least = np.full(len(self.tasks), np.inf)
        for d, row in enumerate(self.sizes.table):
            fewest, most = (1, len(self.tasks)) if rules is None else self._nodes(rules, d)
            widths = np.arange(1, len(self.tasks) + 1)
            own = np.where((widths < fewest) | (widths > most), np.inf, row[widths])
            least = own + (np.minimum.accumulate(least) if d else 0.0)
        return float(least.min()) + self.sizes.fixed

    def _nodes(self, rules: Rules, stage: int) -> tuple[int, int]:
        """Between how many nodes these tasks have at a stage: tasks that are pairwise apart, groups that are not."""
        place = np.array(self.members)
        apart, together = (pairs[stage][place[:, None], place] for pairs in (rules.apart, rules.together))
        clique: list[int] = []
        for task in np.argsort(-apart.sum(axis=1), kind="stable").tolist():
            if all(apart[task, other] for other in clique):
                clique.append(task)
        groups = len({tuple(row) for row in together.tolist()})
        outside = rules.apart.shape[1] - len(self.tasks)
        fewest = max(len(clique), rules.min_width[stage] - outside, 1)
        return fewest, min(groups, rules.max_width[stage])


def task_limit(
    budget: Budget,
    tasks: Sequence[str],
    sizes: SizeModel,
    costs: CostsByUnit,
    head_costs: HeadCostsByUnit | None,
) -> TaskLimit:
    """The limit of a budget, for all tasks where it names none.

    Args:
        budget: one budget.
        tasks: all tasks.
        sizes: of all tasks, in the budget's unit.
        costs, head_costs: what `sizes` was made of.

    Raises:
        BudgetError: it names an unknown task, or tasks leave the trunk early.
    """
    budget.check_tasks(tasks)
    whole = sizes.limit(dataclasses.replace(budget, tasks=()))
    counted = tuple(task for task in tasks if not budget.tasks or task in budget.tasks)
    members = tuple(list(tasks).index(task) for task in counted)
    own = subset_model(sizes, counted, costs, head_costs) if budget.tasks else sizes
    return TaskLimit(budget, own, whole, counted, members)


def too_small(limit: TaskLimit, least: float, *, reached: bool = True) -> BudgetError:
    """The error for a budget that no tree meets even alone.

    Args:
        limit: the budget.
        least: no tree needs less of it.
        reached: whether some tree needs no more.
    """
    unit = "ms" if limit.sizes.unit == "latency" else limit.sizes.unit
    smallest = f"the smallest feasible one is {least:.10g}" if reached else f"every tree needs at least {least:.10g}"
    return BudgetError(
        f"no tree fits the budget of {limit.budget} ({limit.limit:.6g} {unit}); {smallest} {unit}",
        smallest=least if reached else None,
    )
