"""Searches that do not prove by themselves: a heuristic's tree, with the best lower bound that time allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.lower_bounds import EFFORT, rising_bounds
from branchnet.clustering.budgets.further_limits import largest_shares, mixtures, of_widths, shares_of_limits
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.heuristics.beam_search import beam_search
from branchnet.clustering.heuristics.heuristic import fitting_trees, heuristic_search
from branchnet.clustering.heuristics.initial_trees import smallest_tree
from branchnet.clustering.heuristics.local_search import Labels, Landscape
from branchnet.clustering.search_problem import Problem, StitchProblem, infeasible, infeasible_together
from branchnet.clustering.search_result import SearchResult, lossless_clusters
from branchnet.clustering.stitching.chain_descent import smallest_widths
from branchnet.clustering.stitching.chain_search import SECONDS, search_chains
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BudgetError

AnyProblem = Problem | StitchProblem
FRONT_BUDGETS = 24


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
        also=tuple(one.resource(tree.widths) for one in problem.further),
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
    if not problem.further and land.size(smallest) > land.limit * (1 + 1e-12):
        raise infeasible(budget, limit, land.size(smallest) + problem.sizes.fixed, problem.sizes)
    if method == "beam":
        labels, stopped = _beam(land, deadline, seed), ""
    else:
        found = heuristic_search(land, deadline, seed=seed)
        labels, stopped = (None, "") if found is None else (found.labels, found.stopped)
    if labels is None:
        raise _nothing_fits(problem, limit, budget)
    result = judged(problem, labels, limit, method, "; ".join(filter(None, [why, stopped])))
    known, effort = None if stopped else result.cost, round(EFFORT * share)
    # With forced pairs bounds must hold for trees with as many of them; those without surcharges do.
    losses = problem.losses.plain if result.forced else problem.losses
    bounds = _bounds(losses, land, known, effort)
    return with_bound(result, bounds, problem.losses.tie, deadline, effort)


def _beam(land: Landscape, deadline: Deadline, seed: int) -> Labels | None:
    """The beam's tree; with several budgets the cheapest that fits them of those found under each surrogate.

    Where none of these fits, the cheapest tree that local search would start from.
    """
    if land.shares is None:
        return beam_search(land, deadline, seed=seed)
    tables = [land.sizes, *mixtures(land.shares)]
    found = [beam_search(dataclasses.replace(land, sizes=one, shares=None), deadline, seed=seed) for one in tables]
    fitting = [labels for labels in found if labels is not None and land.size(labels) <= 1 + 1e-12]
    return min(fitting or fitting_trees(land), key=land.cost, default=None)


def _nothing_fits(problem: Problem, limit: float, budget: str) -> BudgetError:
    models = [problem.sizes, *(one.sizes for one in problem.further)]
    widths = [[int(row.max()) + 1 for row in smallest_tree(problem.rules, model.table)] for model in models]
    least = [model.of_widths(one) for model, one in zip(models, widths, strict=True)]
    if not problem.further:
        return infeasible(budget, limit, least[0], problem.sizes)
    return infeasible_together(problem, limit, budget, least, searched=True)


def _bounds(losses: StageLosses, land: Landscape, known: float | None, effort: int) -> Iterator[float]:
    """Bounds of which each is better; with several budgets those under any mixture of them."""
    if land.shares is None:
        yield from rising_bounds(losses, land.rules, land.sizes, land.limit, target=known, effort=effort)
        return
    tables = list(mixtures(land.shares))
    for table in tables:
        yield from rising_bounds(losses, land.rules, table, 1.0, target=known, effort=max(1, effort // len(tables)))


def with_bound(
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
    if problem.further:
        return _chains_under_several(problem, limit, budget, method, why, seed, deadline, share)
    if sum(float(row[width]) for row, width in zip(sizes, widths, strict=True)) > room * (1 + 1e-12):
        raise infeasible(budget, limit, problem.sizes.of_widths(widths), problem.sizes)
    found = search_chains(
        problem.losses, sizes, room, deadline, seed=seed, exact=method == "milp", seconds=SECONDS * share
    )
    result = judged(problem, found.labels, limit, method, "; ".join(filter(None, [why, found.stopped])))
    proven = found.fewest and found.bound >= result.cost - problem.losses.tie
    return dataclasses.replace(result, lower_bound=min(found.bound, result.cost), proven=proven)


def _chains_under_several(
    problem: StitchProblem,
    limit: float,
    budget: str,
    method: str,
    why: str,
    seed: int,
    deadline: Deadline,
    share: float,
) -> SearchResult:
    """The best of the trees that are searched under surrogates and fit all budgets, and the best of their bounds."""
    shares = shares_of_limits(problem.sizes, limit, problem.further)
    surrogates = [largest_shares(shares), *mixtures(shares)]
    best: SearchResult | None = None
    # A bound holds for trees with no more forced pairs than the tree that it was found with.
    bounds: list[tuple[int, float]] = []
    stopped = ""
    for number, table in enumerate(surrogates):
        sizes = problem.allowed_sizes(table)
        widths = smallest_widths(sizes)
        if widths is None or sum(float(row[w]) for row, w in zip(sizes, widths, strict=True)) > 1 + 1e-12:
            if number:  # of a mixture, which every tree that fits would fit
                break
            continue
        found = search_chains(
            problem.losses, sizes, 1.0, deadline, seed=seed, exact=method == "milp",
            seconds=SECONDS * share / len(surrogates),
        )  # fmt: skip
        stopped = stopped or found.stopped
        result = judged(problem, found.labels, limit, method, why)
        if number:
            bounds.append((len(result.forced), found.bound))
        fitting = of_widths(shares, result.tree.widths) <= 1 + 1e-12
        if fitting and (best is None or improves(result, best, problem.losses.tie)):
            best = result
    if best is None:
        models = [problem.sizes, *(one.sizes for one in problem.further)]
        chosen = [smallest_widths(problem.allowed_sizes(model.table)) for model in models]
        least = [model.of_widths(one) for model, one in zip(models, chosen, strict=True) if one is not None]
        raise infeasible_together(problem, limit, budget, least, searched=True)
    bound = max((value for forced, value in bounds if forced >= len(best.forced)), default=-math.inf)
    proven = not best.forced and bound >= best.cost - problem.losses.tie
    why = "; ".join(filter(None, [why, stopped]))
    return dataclasses.replace(best, lower_bound=min(bound, best.cost), proven=proven, why=why)


def searched_front(problem: AnyProblem, method: str, why: str, seed: int, deadline: Deadline) -> list[SearchResult]:
    """The front at 24 budgets; interrupted, it ends there."""
    least, largest = _smallest_size(problem), problem.sizes.largest
    limits = np.geomspace(max(least, 1e-300), max(largest, least), FRONT_BUDGETS)
    points: list[SearchResult] = []
    for limit in limits.tolist():
        points.append(searched(problem, limit, "", method, why, seed, deadline, share=0.25))
        if "interrupted" in points[-1].why:
            break
    front: list[SearchResult] = []
    for point in sorted(points, key=lambda point: (point.size, len(point.forced), point.cost)):
        if not front or improves(point, front[-1], problem.losses.tie):
            front.append(point)
    return front


def improves(point: SearchResult, other: SearchResult, tie: float) -> bool:
    """Whether a result has fewer forced pairs than another one, or as many and a lower cost."""
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
