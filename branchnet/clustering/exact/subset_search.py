"""Searches under budgets for subsets of the tasks, `"8 ms for depth+edges"`: exact for few tasks, else with a bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from branchnet.clustering.bounds.lower_bounds import EFFORT
from branchnet.clustering.bounds.subset_bounds import subset_bounds
from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.task_limits import TaskLimit, task_limit, too_small
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit, fits
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.exact.dynamic_program import stage_costs
from branchnet.clustering.exact.partition_lattice import lattice
from branchnet.clustering.exact.subset_program import (
    Relaxed,
    SubsetLimit,
    SubsetTables,
    TooLong,
    cheapest_chains,
    least_shares,
    relaxed,
    subset_tables,
)
from branchnet.clustering.heuristics.bounded_search import judged, with_bound
from branchnet.clustering.heuristics.heuristic import heuristic_search
from branchnet.clustering.heuristics.local_search import Labels
from branchnet.clustering.heuristics.subset_landscape import subset_landscape, subset_starts
from branchnet.clustering.search_problem import METHODS, Measured, Problem, StitchProblem, make_problem
from branchnet.clustering.search_result import Resource, SearchResult
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BranchnetError, BudgetError

MOST_TASKS = 10
"""Up to so many tasks, with 115,975 partitions, there is an exact method."""
_ROUNDS = 4
"""Of the local search, for a tree that the exact method drops others by."""
_ROUNDS_ALONE = 20
"""Of the local search where less than its usual effort is wanted, for a share of 1."""
_CHAINS = 200_000
"""So many chains are held for `auto`: a few seconds."""


def search_under_subsets(
    problem: Problem | StitchProblem,
    limits: Sequence[TaskLimit],
    method: str,
    seed: int,
    deadline: Deadline,
    *,
    share: float = 1.0,
) -> SearchResult:
    """The tree of least cost that meets all limits; problem is in the unit of the first one.

    A local search takes that share of its usual effort.

    Raises:
        BudgetError: nothing fits, or nothing that fits was found.
        BranchnetError: a method or an objective that does not know these budgets.
    """
    task = _Search(checked(problem, method), limits, seed, deadline, share)
    if method == "exact" or (method == "auto" and len(problem.losses.tasks) <= MOST_TASKS):
        return task.exact(math.inf if method == "exact" else _CHAINS)
    return task.local(_why_local(problem, method))


def _why_local(problem: Problem | StitchProblem, method: str) -> str:
    n = len(problem.losses.tasks)
    asked = f"{n} tasks have too many partitions for the exact method, which takes up to {MOST_TASKS}"
    return "asked for" if method == "local" else asked


def how_under_subsets(problem: Problem | StitchProblem, method: str) -> str:
    """What a search under budgets for some of the tasks does, in words.

    Raises:
        BranchnetError: a method or an objective that does not know these budgets.
    """
    n = len(checked(problem, method).losses.tasks)
    if method == "exact" or (method == "auto" and n <= MOST_TASKS):
        return f"exact search over the partitions of {n} tasks, local search where that takes too long"
    return f"local search ({_why_local(problem, method)})"


def task_limits(
    budgets: Sequence[Budget],
    unit: str,
    affinity: Measured,
    costs: CostsByUnit,
    head_costs: HeadCostsByUnit | None,
    *others: Any,
) -> tuple[Problem | StitchProblem, list[TaskLimit]]:
    """The problem in a unit, and the limits of budgets; the other arguments as `make_problem` takes them.

    Raises:
        BudgetError: an unknown task, or tasks leave the trunk early.
    """
    units = dict.fromkeys([unit, *(one.unit for one in budgets)])
    problems = {each: make_problem(affinity, costs, each, head_costs, *others) for each in units}
    tasks = problems[unit].losses.tasks
    limits = [task_limit(one, tasks, problems[one.unit].sizes, costs, head_costs) for one in budgets]
    return problems[unit], limits


def checked(problem: Problem | StitchProblem, method: str) -> Problem:
    """The problem, where budgets for some of the tasks are known.

    Raises:
        BranchnetError: a method or an objective that does not know them.
    """
    if isinstance(problem, StitchProblem):
        raise BranchnetError(
            "budgets for some of the tasks are not known to objective='stitch'; expected another objective, such as "
            "'medoid', or budgets for all tasks"
        )
    if method not in METHODS:
        raise BranchnetError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if method not in ("auto", "exact", "local"):
        raise BranchnetError(
            f"method={method!r} does not know budgets for some of the tasks; expected 'auto', 'exact' or 'local'"
        )
    if method == "exact" and len(problem.losses.tasks) > MOST_TASKS:
        raise BranchnetError(
            f"{len(problem.losses.tasks)} tasks have too many partitions for the exact method with budgets for some of "
            f"the tasks, which takes up to {MOST_TASKS}; expected method='local', which reports a lower bound"
        )
    return problem


@dataclass(frozen=True, eq=False)
class _Search:
    problem: Problem
    limits: Sequence[TaskLimit]
    seed: int
    deadline: Deadline
    share: float

    def local(self, why: str) -> SearchResult:
        """The best tree of the local search, with the best bound that time allows."""
        rounds = None if self.share == 1.0 else round(_ROUNDS_ALONE * self.share)
        labels, stopped = self._found(rounds)
        if labels is None:
            raise self._nothing_found()
        return self._bounded(labels, why, stopped)

    def exact(self, chains: float) -> SearchResult:
        """The best tree; of the local search where the exact one is stopped or takes more chains."""
        labels, stopped = self._found(_ROUNDS)
        reason = f"the exact method was not tried: {stopped}"
        if not stopped:
            try:
                return self._solved(labels, chains)
            except TooLong:
                reason = "the exact method took too long; method='exact' goes on"
            except OutOfTime:
                reason = "the exact method was stopped at the time limit"
            except KeyboardInterrupt:
                reason = "the exact method was interrupted"
        if labels is None:
            raise self._nothing_found()
        return self._bounded(labels, f"this is the best tree of the local search; {reason}", stopped)

    def _found(self, rounds: int | None = None) -> tuple[Labels | None, str]:
        """The best tree of the local search, and what stopped it."""
        problem = self.problem
        for one in self.limits:
            if not fits(least := one.least(problem.rules), one.limit):
                raise too_small(one, least, reached=self._smallest(one) <= least * (1 + 1e-12))
        land = subset_landscape(problem.losses, problem.rules, self.limits)
        fitting = [labels for one in self.limits for labels in self._small_trees(one) if self._fits(labels)]
        starts = [*subset_starts(land), *fitting]
        found = heuristic_search(land, self.deadline, seed=self.seed, rounds=rounds, starts=starts)
        return (None, "") if found is None else (found.labels, found.stopped)

    def _fits(self, labels: Labels) -> bool:
        return all(one.fits(self._tree(labels)) for one in self.limits)

    def _small_trees(self, one: TaskLimit) -> list[Labels]:
        """The trees that local searches under one limit alone start from."""
        rules, losses = self.problem.rules, self.problem.losses
        large = dataclasses.replace(one, limit=one.sizes.largest * (1 + len(one.tasks)) + 1)
        tight = dataclasses.replace(one, limit=one.least(rules) * (1 + 1e-9))
        return [
            labels for limit in (tight, large) for labels in subset_starts(subset_landscape(losses, rules, [limit]))
        ]

    def _smallest(self, one: TaskLimit) -> float:
        """The least of these trees, of what the limit counts."""
        return min((one.size(self._tree(labels)) for labels in self._small_trees(one)), default=math.inf)

    def _tree(self, labels: Labels) -> Tree:
        return Tree.from_labels(self.problem.losses.tasks, labels)

    def _bounded(self, labels: Labels, why: str, stopped: str) -> SearchResult:
        problem = self.problem
        result = self._result(labels, "local", "; ".join(filter(None, [why, stopped])))
        # With forced pairs bounds must hold for trees with as many of them; those without surcharges do.
        losses = problem.losses.plain if result.forced else problem.losses
        bounds: Iterator[float] = subset_bounds(
            losses,
            problem.rules,
            self._counted(),
            target=result.cost,
            effort=1 if stopped else round(EFFORT * self.share),
            deadline=self.deadline,
        )
        return with_bound(result, bounds, problem.losses.tie, self.deadline, round(EFFORT * self.share))

    def _counted(self) -> list[SubsetLimit]:
        return [SubsetLimit(one.members, one.shares()) for one in self.limits]

    def _result(self, labels: Labels, method: str, why: str) -> SearchResult:
        """The tree with its sizes; the size of a result is that of all tasks, which may be limited by nothing."""
        result = judged(self.problem, labels, math.inf, method, why)
        resources = [one.resource(result.tree) for one in self.limits]
        own, others = resources[0], resources[1:]
        if own.tasks:
            own, others = Resource(own.unit, result.size, math.inf), resources
        return dataclasses.replace(result, limit=own.limit, also=tuple(others))

    def _tables(self) -> SubsetTables:
        problem, grid = self.problem, lattice(len(self.problem.losses.tasks))
        costs = [stage_costs(problem.losses, problem.rules, grid, d) for d in range(problem.losses.depth)]
        return subset_tables(grid, costs, self._counted())

    def _solved(self, labels: Labels | None, chains: float) -> SearchResult:
        problem, tables = self.problem, self._tables()
        offset, tie = problem.losses.offset, problem.losses.tie
        if labels is None:
            labels = self._any_tree(tables, chains)
        known = problem.losses.tree_cost(self._tree(labels)) - offset
        bound = relaxed(tables, known, self.deadline)
        found = cheapest_chains(tables, bound, known + 2 * tie, self.deadline, chains)
        least = min(cost for cost, _, _ in found)
        tied = [entry for entry in found if entry[0] <= least + tie]
        best = min(tied, key=lambda entry: (entry[1], tuple(map(tuple, entry[2][::-1].tolist()))))[2]
        why = f"{len(problem.losses.tasks)} tasks are few enough: every partition is solved"
        result = self._result(best, "exact", why)
        return dataclasses.replace(result, lower_bound=min(result.cost, least + offset), proven=True)

    def _any_tree(self, tables: SubsetTables, chains: float) -> Labels:
        """A tree that fits, where the local search found none."""
        free = tables.without_costs()
        weights = np.zeros(free.limits)
        bound = relaxed(free, 0.0, self.deadline)
        if not math.isfinite(bound.bound):
            raise self._nothing_fits(tables)
        found = cheapest_chains(free, Relaxed(bound.bound, weights, bound.prefixes), math.inf, self.deadline, chains)
        if not found:
            raise self._nothing_fits(tables)
        return found[0][2]

    def _nothing_fits(self, tables: SubsetTables) -> BudgetError:
        """Which budget no tree meets even alone, and the smallest one for it; else that they exclude each other."""
        smallest = []
        for one in self.limits:
            # Shares of a limit that no stage alone is beyond.
            large = dataclasses.replace(one, limit=one.sizes.fixed + 2 * max(float(one.sizes.table.max()), 1.0))
            counted = [SubsetLimit(one.members, large.shares())]
            costs = [
                stage_costs(self.problem.losses, self.problem.rules, tables.grid, d)
                for d in range(self.problem.losses.depth)
            ]
            share = float(least_shares(subset_tables(tables.grid, costs, counted))[0])
            if not math.isfinite(share):
                return no_tree()
            least = share * (large.limit - one.sizes.fixed) + one.sizes.fixed
            if not fits(least, one.limit):
                return too_small(one, least)
            smallest.append(f"{least:.10g} for {one.budget}")
        return self._together("no tree fits", "", smallest)

    def _nothing_found(self) -> BudgetError:
        """Nothing was found by a search that may miss a tree."""
        smallest = []
        for one in self.limits:
            least = self._smallest(one)
            smallest.append(f"{least:.10g} for {one.budget}" if math.isfinite(least) else f"unknown for {one.budget}")
        return self._together("no tree was found that fits", ", and one that fits may exist", smallest)

    def _together(self, start: str, caveat: str, smallest: Sequence[str]) -> BudgetError:
        written = ", ".join(str(one.budget) for one in self.limits)
        if len(self.limits) == 1:
            needed = smallest[0].split(" for ")[0]
            return BudgetError(f"{start} the budget of {written}{caveat}; the smallest tree found needs {needed}")
        found = "" if caveat else ", though some tree fits each of them"
        return BudgetError(
            f"{start} the budgets {written} together{found}{caveat}; the smallest sizes are {'; '.join(smallest)}, not "
            "all of one tree: relax one of them"
        )


def no_tree() -> BudgetError:
    """The error for constraints that leave no tree."""
    return BudgetError("no tree meets the constraints; expected some that leave a tree: drop one of them")
