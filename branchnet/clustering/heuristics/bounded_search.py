"""Searches that do not prove by themselves: a heuristic's tree, with the best lower bound that time allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from branchnet.clustering.bounds.lower_bounds import EFFORT, rising_bounds
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.heuristics.beam_search import beam_search
from branchnet.clustering.heuristics.heuristic import heuristic_search
from branchnet.clustering.heuristics.initial_trees import smallest_tree
from branchnet.clustering.heuristics.local_search import Labels
from branchnet.clustering.search_problem import Problem, StitchProblem, infeasible
from branchnet.clustering.search_result import SearchResult, lossless_clusters
from branchnet.clustering.stitching.chain_descent import smallest_widths
from branchnet.clustering.stitching.chain_search import SECONDS, search_chains
from branchnet.clustering.trees.tree import Tree

AnyProblem = Problem | StitchProblem
_FRONT_BUDGETS = 24


def judged(problem: AnyProblem, labels: Labels, limit: float, method: str, why: str) -> SearchResult:
    """The tree with its cost, without a bound yet."""
    tree = Tree.from_labels(problem.losses.tasks, labels, problem.sizes.depths)
    verdict = problem.losses.verdict(tree)
    return SearchResult(
        tree=tree,
        cost=verdict.cost,
        size=problem.sizes.of_widths(tree.widths),
        lower_bound=-math.inf,
        proven=False,
        method=method,
        why=why,
        objective=problem.objective,
        unit=problem.sizes.unit,
        limit=limit,
        uncounted=problem.sizes.uncounted,
        first_difference=problem.sizes.limited_by,
        forced=verdict.forced,
        donors=verdict.donors,
        lossless=lossless_clusters(tree, problem.sizes.identical),
    )


def searched(
    problem: AnyProblem,
    limit: float,
    budget: str,
    method: str,
    why: str,
    seed: int,
    deadline: Deadline,
    *,
    share: float = 1.0,
) -> SearchResult:
    """The best tree of a method that is not exact, with a bound; `share` of the usual effort is spent on it."""
    if isinstance(problem, StitchProblem):
        return _searched_chains(problem, limit, budget, method, why, seed, deadline, share)
    land = problem.landscape(limit)
    smallest = smallest_tree(problem.rules, land.sizes)
    least = land.size(smallest)
    if least > land.limit * (1 + 1e-12):
        raise infeasible(budget, limit, least + problem.sizes.fixed, problem.sizes)
    if method == "beam":
        labels, stopped = beam_search(land, deadline, seed=seed), ""
        if labels is None:
            raise infeasible(budget, limit, least + problem.sizes.fixed, problem.sizes)
    else:
        found = heuristic_search(land, deadline, seed=seed)
        if found is None:
            raise infeasible(budget, limit, least + problem.sizes.fixed, problem.sizes)
        labels, stopped = found.labels, found.stopped
    result = judged(problem, labels, limit, method, "; ".join(filter(None, [why, stopped])))
    known, effort = None if stopped else result.cost, round(EFFORT * share)
    # With forced pairs bounds must hold for trees with as many of them; those without surcharges do.
    losses = problem.losses.plain if result.forced else problem.losses
    bounds = rising_bounds(losses, problem.rules, land.sizes, land.limit, target=known, effort=effort)
    return _with_bound(result, bounds, problem.losses.tie, deadline, effort)


def _with_bound(
    result: SearchResult, bounds: Iterator[float], tie: float, deadline: Deadline, effort: int
) -> SearchResult:
    """The result with the best of the bounds that time allows; the first is always taken."""
    bound, stopped = next(bounds), ""
    try:
        deadline.begin("bounding", effort)
        for value in bounds:
            bound = max(bound, value)
            deadline.step()
    except OutOfTime:
        stopped = "its bound was cut short by the time limit"
    except KeyboardInterrupt:
        stopped = "its bound was interrupted"
    why = "; ".join(filter(None, [result.why, stopped]))
    reached = bound >= result.cost - tie and not result.forced
    return dataclasses.replace(result, lower_bound=min(bound, result.cost), proven=reached, why=why)


def _searched_chains(
    problem: StitchProblem,
    limit: float,
    budget: str,
    method: str,
    why: str,
    seed: int,
    deadline: Deadline,
    share: float,
) -> SearchResult:
    sizes, room = problem.allowed_sizes(), limit - problem.sizes.fixed
    widths = smallest_widths(sizes)
    if widths is None:
        raise infeasible(budget, limit, None, problem.sizes)
    if sum(float(row[width]) for row, width in zip(sizes, widths, strict=True)) > room * (1 + 1e-12):
        raise infeasible(budget, limit, problem.sizes.of_widths(widths), problem.sizes)
    found = search_chains(
        problem.losses, sizes, room, deadline, seed=seed, exact=method == "milp", seconds=SECONDS * share
    )
    result = judged(problem, found.labels, limit, method, "; ".join(filter(None, [why, found.stopped])))
    proven = found.fewest and found.bound >= result.cost - problem.losses.tie
    return dataclasses.replace(result, lower_bound=min(found.bound, result.cost), proven=proven)


def searched_front(problem: AnyProblem, method: str, why: str, seed: int, deadline: Deadline) -> list[SearchResult]:
    """The front at 24 budgets; interrupted, it ends there."""
    least, largest = _smallest_size(problem), problem.sizes.largest
    limits = np.geomspace(max(least, 1e-300), max(largest, least), _FRONT_BUDGETS)
    points: list[SearchResult] = []
    for limit in limits.tolist():
        points.append(searched(problem, limit, "", method, why, seed, deadline, share=0.25))
        if "interrupted" in points[-1].why:
            break
    front: list[SearchResult] = []
    for point in sorted(points, key=lambda point: (point.size, len(point.forced), point.cost)):
        if not front or _improves(point, front[-1], problem.losses.tie):
            front.append(point)
    return front


def _improves(point: SearchResult, other: SearchResult, tie: float) -> bool:
    if len(point.forced) != len(other.forced):
        return len(point.forced) < len(other.forced)
    return point.cost < other.cost - tie


def _smallest_size(problem: AnyProblem) -> float:
    if isinstance(problem, Problem):
        land = problem.landscape(math.inf)
        return land.size(smallest_tree(problem.rules, land.sizes)) + problem.sizes.fixed
    widths = smallest_widths(problem.allowed_sizes())
    if widths is None:
        raise infeasible("", math.inf, None, problem.sizes)
    return problem.sizes.of_widths(widths)
