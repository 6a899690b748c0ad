"""Searches under budgets for subsets of the tasks, `"8 ms for depth+edges"`: exact, for few tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit, SizeModel, fits, subset_model
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.subset_program import MOST_TASKS, SubsetLimit, cheapest_chains
from branchnet.clustering.heuristics.bounded_search import judged
from branchnet.clustering.search_problem import Problem, StitchProblem
from branchnet.clustering.search_result import Resource, SearchResult
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BranchnetError, BudgetError


@dataclass(frozen=True, eq=False)
class TaskLimit:
    """A budget, with what counts towards it: `sizes` has the heads of `tasks` alone."""

    budget: Budget
    sizes: SizeModel
    limit: float
    tasks: tuple[str, ...]

    def size(self, tree: Tree) -> float:
        """What these tasks need of a tree."""
        widths = [len({tree.cluster_of(task, d) for task in self.tasks}) for d in range(tree.depth)]
        return self.sizes.of_widths(widths)


def task_limit(
    budget: Budget, problem: Problem | StitchProblem, costs: CostsByUnit, head_costs: HeadCostsByUnit | None
) -> TaskLimit:
    """The limit of a budget, for all tasks where it names none; `problem` is in its unit.

    Raises:
        BudgetError: it names an unknown task, or stitches are counted.
    """
    names = problem.losses.tasks
    whole = problem.sizes.limit(dataclasses.replace(budget, tasks=()))
    if not budget.tasks:
        return TaskLimit(budget, problem.sizes, whole, names)
    if unknown := [task for task in budget.tasks if task not in names]:
        raise BudgetError(f"the budget {budget} names the unknown task {unknown[0]!r}; expected {', '.join(names)}")
    tasks = tuple(task for task in names if task in budget.tasks)
    return TaskLimit(budget, subset_model(problem.sizes, tasks, costs, head_costs), whole, tasks)


def search_under_subsets(
    problem: Problem | StitchProblem, limits: Sequence[TaskLimit], method: str, deadline: Deadline
) -> SearchResult:
    """The tree of least cost that meets all limits; problem is in the unit of the first one.

    Raises:
        BudgetError: nothing fits, or there are too many tasks.
        OutOfTime: the deadline has passed.
    """
    n = len(problem.losses.tasks)
    if isinstance(problem, StitchProblem) or method not in ("auto", "exact"):
        raise BranchnetError(
            "budgets for some of the tasks are known to the exact method alone, and not to objective='stitch'; "
            "expected method='auto' and another objective"
        )
    if n > MOST_TASKS:
        raise BudgetError(
            f"a budget for some of the tasks is known for up to {MOST_TASKS} tasks, and there are {n}; expected "
            "budgets for all tasks"
        )
    place = {task: number for number, task in enumerate(problem.losses.tasks)}
    counted = [SubsetLimit(tuple(place[task] for task in one.tasks), _shares(one)) for one in limits]
    found = cheapest_chains(problem.losses, problem.rules, counted, deadline)
    if not found:
        raise _nothing_fits(problem, limits, counted, deadline)
    least = min(cost for cost, _, _ in found)
    tied = [entry for entry in found if entry[0] <= least + problem.losses.tie]
    labels = min(tied, key=lambda entry: (entry[1], tuple(map(tuple, entry[2][::-1].tolist()))))[2]
    result = judged(problem, labels, limits[0].limit, "exact", f"{n} tasks are few enough: every partition is solved")
    resources = [Resource(one.sizes.unit, one.size(result.tree), one.limit, one.budget.tasks) for one in limits]
    own, others = resources[0], resources[1:]
    if own.tasks:  # the size of a result is that of all tasks, which nothing limits
        own, others = Resource(own.unit, result.size, math.inf), resources
    bound = min(result.cost, least)
    return dataclasses.replace(result, limit=own.limit, also=tuple(others), lower_bound=bound, proven=True)


def _shares(one: TaskLimit) -> np.ndarray:
    """Stages as shares of what the limit leaves beside the heads; a limit that leaves nothing allows free ones only."""
    room = one.limit - one.sizes.fixed
    if room > 0:
        return np.asarray(one.sizes.table / room)
    return (
        np.where(one.sizes.table > 0, np.inf, 0.0)
        if fits(one.sizes.fixed, one.limit)
        else np.full_like(one.sizes.table, np.inf)
    )


def _nothing_fits(
    problem: Problem, limits: Sequence[TaskLimit], counted: Sequence[SubsetLimit], deadline: Deadline
) -> BudgetError:
    """Which budget no tree meets even alone, and the smallest one for it; else that they exclude each other."""
    smallest = []
    for one, shares in zip(limits, counted, strict=True):
        sized = SubsetLimit(shares.members, one.sizes.table / max(float(one.sizes.table.max()) * 1e3, 1e-300))
        trees = cheapest_chains(problem.losses, problem.rules, [sized], deadline)
        names = problem.losses.tasks
        least = min((one.size(Tree.from_labels(names, labels)) for _, _, labels in trees), default=None)
        if least is None:
            return BudgetError("no tree meets the constraints; expected some that leave a tree: drop one of them")
        if not fits(least, one.limit):
            return BudgetError(
                f"no tree fits the budget of {one.budget} ({one.limit:.6g} {one.sizes.unit}); the smallest feasible "
                f"one is {least:.10g} {one.sizes.unit}",
                smallest=least,
            )
        smallest.append(f"{least:.10g} for {one.budget}")
    return BudgetError(
        f"no tree fits the budgets {', '.join(str(one.budget) for one in limits)} together, though some tree fits each "
        f"of them; the smallest sizes are {'; '.join(smallest)}, not all of one tree: relax one of them"
    )
