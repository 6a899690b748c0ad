"""Fronts of cost against size under budgets for some of the tasks, by searches at falling or at fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.task_limits import TaskLimit
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.subset_search import search_under_subsets
from branchnet.clustering.heuristics.bounded_search import FRONT_BUDGETS, improves
from branchnet.clustering.search_problem import Problem, StitchProblem
from branchnet.clustering.search_result import SearchResult
from branchnet.errors import BudgetError


def front_under_subsets(
    problem: Problem | StitchProblem, limits: Sequence[TaskLimit], method: str, seed: int, deadline: Deadline
) -> list[SearchResult]:
    """Every trade between size and cost of trees that meet the limits, the smallest tree first.

    Where the exact method solves every point the front is complete: each search allows a little less than the size of
    the tree before it. Otherwise it is searched at 24 sizes.

    Args:
        problem: in the unit of the front.
        limits: the limits, at least one.
        method: as `search` takes it.
        seed: of the local searches.
        deadline: shows the progress.

    Raises:
        BudgetError: nothing fits, or nothing that fits was found.
    """
    largest = search_under_subsets(problem, [_at_most(problem, problem.sizes.largest), *limits], method, seed, deadline)
    if largest.proven and largest.method == "exact":
        points = list(_falling(problem, limits, method, seed, deadline, largest))
    else:
        points = [largest]
    if points[-1].method != "exact" and not _interrupted(points[-1]):
        points += _at_sizes(problem, limits, method, seed, deadline, points[-1])
    front: list[SearchResult] = []
    for point in sorted(points, key=lambda point: (point.size, len(point.forced), point.cost)):
        if not front or improves(point, front[-1], problem.losses.tie):
            front.append(point)
    return front


def _at_most(problem: Problem | StitchProblem, size: float) -> TaskLimit:
    """A limit for the size of all tasks."""
    tasks = problem.losses.tasks
    budget = Budget(max(size, 1e-300), problem.sizes.unit)
    return TaskLimit(budget, problem.sizes, size, tasks, tuple(range(len(tasks))))


def _falling(
    problem: Problem | StitchProblem,
    limits: Sequence[TaskLimit],
    method: str,
    seed: int,
    deadline: Deadline,
    point: SearchResult,
) -> Iterator[SearchResult]:
    while True:
        below = _at_most(problem, point.size * (1 - 1e-9))
        yield _as_point(point)
        if point.method != "exact" or _interrupted(point):
            return
        try:
            point = search_under_subsets(problem, [below, *limits], method, seed, deadline)
        except BudgetError:  # no tree is smaller
            return


def _at_sizes(
    problem: Problem | StitchProblem,
    limits: Sequence[TaskLimit],
    method: str,
    seed: int,
    deadline: Deadline,
    largest: SearchResult,
) -> list[SearchResult]:
    rules = None if isinstance(problem, StitchProblem) else problem.rules
    least = _at_most(problem, largest.size).least(rules)
    points = [_as_point(largest)]
    for size in np.geomspace(max(least, 1e-300), max(largest.size, least), FRONT_BUDGETS)[:-1].tolist():
        try:
            tight = [_at_most(problem, size), *limits]
            found = search_under_subsets(problem, tight, method, seed, deadline, share=0.25)
        except BudgetError:  # a tree that meets the limits may need more than the smallest of all
            continue
        points.append(_as_point(found))
        if _interrupted(found):
            break
    return points


def _interrupted(point: SearchResult) -> bool:
    return "interrupted" in point.why


def _as_point(result: SearchResult) -> SearchResult:
    """The result without the limit on the size of all tasks."""
    return replace(result, limit=math.inf)
