"""The entry points: the best tree under a budget, and the whole front of cost against size."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering.bounds.lower_bounds import EFFORT, rising_bounds
from branchnet.clustering.budgets import (
    Budget,
    Costs,
    HeadCosts,
    SizeModel,
    as_budget,
    fits,
    size_model,
    stage_shares,
    stages_and_heads,
)
from branchnet.clustering.constraints import Constraints, Rules, rules_of
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.exact.dynamic_program import WidthTable, forced_stages, width_table, work
from branchnet.clustering.heuristics.beam_search import beam_search
from branchnet.clustering.heuristics.heuristic import heuristic_search
from branchnet.clustering.heuristics.initial_trees import smallest_tree
from branchnet.clustering.heuristics.local_search import Labels, Landscape
from branchnet.clustering.objectives import Objective, StageLosses, stage_losses
from branchnet.clustering.pairwise_estimates import expected_losses
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, BranchnetError, BudgetError
from branchnet.stages.costs import StageCosts

METHODS = ("auto", "exact", "local", "beam")
# Up to where `auto` takes the exact method: tasks, numbers compared, bytes held.
_EXACT_TASKS = 12
_EXACT_WORK = 6_000_000_000
_EXACT_BYTES = 6_000_000_000
# From here on a local search comes first, so that an interrupted exact search has a tree to return.
_LONG_WORK = 200_000_000
_MOST_BYTES = 32_000_000_000
_FRONT_BUDGETS = 24


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a solver needs, checked."""

    losses: StageLosses
    sizes: SizeModel
    rules: Rules
    objective: str

    def landscape(self, limit: float) -> Landscape:
        """The problem under a budget, for the heuristics; heads are subtracted from the limit."""
        return Landscape(self.losses, self.rules, self.sizes.table, limit - self.sizes.heads)


def search(
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: Costs,
    budget: Budget | float | str,
    *,
    head_costs: HeadCosts | None = None,
    objective: str | Objective = "mean-pair",
    stage_weights: Sequence[float] | str | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    progress: bool = False,
) -> SearchResult:
    """The tree of least cost that fits the budget, with a bound on how much better any other could be.

    Ties (costs that differ by no more than 1e-9 of the largest dissimilarity possible under the measure) go to the
    smaller size, then to the first in canonical order. Interrupted, or at the time
    limit, the best tree so far is returned with its bound; `why` says so.

    Args:
        affinity: values (D, N, N), larger = better shared; or PairMeasurements, by their expected losses
            (`expected_losses`); or StageLosses. The latter two are objectives themselves: `objective` is not used.
        costs: the staged networks by task, the result of `split_all`, whose heads count, too; or StageCosts, one number
            per stage, or a table `costs[stage][width]` for widths 0..N.
        budget: a Budget, its text, or a number of parameters. A relative one is a share of N separate networks, heads
            included where they are known.
        head_costs: `{task: number or StageCost}`; None = those of the staged networks; with other costs, heads are
            not counted then.
        objective: how trees are judged, see `branchnet.clustering.objectives`; the paper's is `"mean-max"`.
        stage_weights: D factors of the stages' terms, or `"params"` or `"flops"`: by what a stage costs (see
            `stage_shares`); None = 1.
        method: `"exact"` (dynamic programme over all partitions), `"local"` (starts and local search), `"beam"` (the
            published beam search with spectral clustering), or `"auto"`: exact where it fits in time and memory.
        shared_stages: the first so many stages are shared by all tasks; a short form of the constraint.
        constraints: further restrictions.
        seed: for the methods that draw random numbers.
        time_limit: seconds; None = no limit.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The tree, its cost and size, and a lower bound on the cost of every tree within the budget.

    Raises:
        BudgetError: nothing fits; the error names the smallest feasible size.
        AffinityError: affinities that are directed or not finite, an unknown objective, stage weights that do not fit.
        TreeError: constraints that contradict each other or name unknown tasks.

    >>> values = np.array([[[1.0, 0.9, 0.8], [0.9, 1.0, 0.8], [0.8, 0.8, 1.0]],
    ...                    [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    >>> affinity = branchnet.Affinity(["depth", "normals", "scene"], ["layer1", "layer2"], values)
    >>> result = branchnet.search(affinity, [1e6, 3e6], "60% params", objective="mean-pair")
    >>> print(result.tree)
    3 tasks, 2 stages, 3 nodes
    stage 0: depth, normals, scene
    ├── stage 1: depth, normals
    └── stage 1: scene
    >>> result.size, result.proven, result.method
    (7000000.0, True, 'exact')
    """
    wanted = as_budget(budget)
    problem = make_problem(
        affinity, costs, wanted.unit, head_costs, objective, stage_weights, shared_stages, constraints
    )
    limit = problem.sizes.limit(wanted)
    _warn_uncounted(problem.sizes)
    _warn_limited(problem.sizes)
    chosen, why = choose_method(problem, method)
    with Deadline(time_limit, show=progress) as deadline:
        if chosen != "exact":
            return _searched(problem, limit, str(wanted), chosen, why, seed, deadline)
        known: SearchResult | None = None
        try:
            if _takes_long(problem):
                known = _searched(problem, limit, str(wanted), "local", "", seed, deadline)
                if known.why:
                    return dataclasses.replace(known, why=f"{known.why} before the exact method began")
            table = width_table(problem.losses, problem.rules, deadline)
        except (OutOfTime, KeyboardInterrupt) as stop:
            reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped at the time limit"
            why = f"the exact method was {reason}; this is the best tree of the local search before it"
            known = known or _searched(problem, limit, str(wanted), "local", "", seed, Deadline(0.0))
            return dataclasses.replace(known, why=why)
    return _best(problem, table, limit, str(wanted), why)


def pareto_front(
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: Costs,
    *,
    unit: str = "params",
    head_costs: HeadCosts | None = None,
    objective: str | Objective = "mean-pair",
    stage_weights: Sequence[float] | str | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[SearchResult]:
    """Every trade between size and cost, smallest tree first: no tree is as small and cheaper, or as cheap and smaller.

    By the exact method the front is complete and proven. For many tasks it is searched at 24 budgets, each point with
    its own bound; interrupted, it ends there.

    Args:
        affinity: as `search` takes it.
        costs: as `search` takes them.
        unit: the unit in which sizes are counted: `"params"`, `"flops"` or `"latency"`.
        head_costs: as `search` takes them.
        objective: as `search` takes it.
        stage_weights: as `search` takes them.
        method: as `search` takes it.
        shared_stages: as `search` takes it.
        constraints: as `search` takes them.
        seed: as `search` takes it.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The points of the front, sizes rising and costs falling.

    Raises:
        BudgetError: no tree meets the constraints, or costs do not fit the affinities.
        AffinityError: as `search`.
        TreeError: as `search`.

    >>> values = np.array([[[1.0, 0.9, 0.8], [0.9, 1.0, 0.8], [0.8, 0.8, 1.0]],
    ...                    [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    >>> affinity = branchnet.Affinity(["depth", "normals", "scene"], ["layer1", "layer2"], values)
    >>> for point in branchnet.pareto_front(affinity, [1e6, 3e6], objective="mean-pair"):
    ...     print(f"{point.size / 1e6:.0f} million parameters, cost {point.cost:.3f}, widths {point.tree.widths}")
    4 million parameters, cost 0.767, widths (1, 1)
    7 million parameters, cost 0.233, widths (1, 2)
    8 million parameters, cost 0.133, widths (2, 2)
    11 million parameters, cost 0.067, widths (2, 3)
    12 million parameters, cost 0.000, widths (3, 3)
    """
    problem = make_problem(affinity, costs, unit, head_costs, objective, stage_weights, shared_stages, constraints)
    _warn_uncounted(problem.sizes)
    chosen, why = choose_method(problem, method)
    with Deadline(show=progress) as deadline:
        if chosen != "exact":
            return _searched_front(problem, chosen, why, seed, deadline)
        table = width_table(problem.losses, problem.rules, deadline)
    rows = _front_rows(table, _table_sizes(problem.sizes, table))
    costs = [float(table.costs[row]) for row in rows]
    return [
        _proven(problem, table, row, cost + table.tolerance, cost, math.inf, why)
        for row, cost in zip(rows, costs, strict=True)
    ]


def make_problem(
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: Costs,
    unit: str,
    head_costs: HeadCosts | None = None,
    objective: str | Objective = "mean-pair",
    stage_weights: Sequence[float] | str | None = None,
    shared_stages: int = 0,
    constraints: Constraints | None = None,
) -> Problem:
    """Check that the inputs of a search fit together; arguments and errors as `search`."""
    costs, head_costs = stages_and_heads(costs, head_costs)
    if isinstance(stage_weights, str):
        stage_weights = stage_shares(costs, stage_weights, unit)
    losses = _losses(affinity, objective, stage_weights)
    sizes = size_model(costs, losses.tasks, unit, head_costs)
    if len(sizes.table) != losses.depth:
        raise BudgetError(
            f"costs has {len(sizes.table)} stages, the affinities {losses.depth}; expected one cost per location"
        )
    if isinstance(affinity, PairMeasurements):
        affinity = affinity.affinity()
    if isinstance(affinity, Affinity) and isinstance(costs, StageCosts):
        affinity.check_locations(costs.names, "the costs")
    given = constraints or Constraints()
    if shared_stages:
        given = dataclasses.replace(given, shared_stages=max(shared_stages, given.shared_stages))
    return Problem(losses, sizes, rules_of(given, losses.tasks, losses.depth), losses.name)


def _losses(
    affinity: Affinity | PairMeasurements | StageLosses,
    objective: str | Objective,
    stage_weights: Sequence[float] | None,
) -> StageLosses:
    if isinstance(affinity, Affinity):
        return stage_losses(affinity, objective, stage_weights)
    if stage_weights is not None:
        raise AffinityError("stage_weights weigh similarities, and losses are given; expected stage_weights=None")
    return expected_losses(affinity) if isinstance(affinity, PairMeasurements) else affinity


def _warn_uncounted(sizes: SizeModel) -> None:
    if sizes.uncounted:
        warnings.warn(
            f"sizes in FLOPs count nothing for {', '.join(sizes.uncounted)}, which have no formula: stages that spend "
            "their time there look too cheap; a budget in params or ms does not depend on it",
            stacklevel=3,
        )


def _warn_limited(sizes: SizeModel) -> None:
    if sizes.limited_by is not None:
        warnings.warn(str(sizes.limited_by), stacklevel=3)


def choose_method(problem: Problem, method: str) -> tuple[str, str]:
    """The method that runs, and why."""
    if method not in METHODS:
        raise BranchnetError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    n, depth = len(problem.losses.tasks), problem.losses.depth
    if method == "exact" and work(n, depth - forced_stages(problem.rules))[1] > _MOST_BYTES:
        raise BranchnetError(
            f"{n} tasks and {depth} stages have too many partitions for the exact method; expected method='local', "
            "which reports a lower bound"
        )
    if method != "auto":
        return method, "asked for"
    if n > _EXACT_TASKS:
        return "local", f"{n} tasks have too many partitions for the exact method, which takes up to {_EXACT_TASKS}"
    compared, held = work(n, depth - forced_stages(problem.rules))
    if compared > _EXACT_WORK or held > _EXACT_BYTES:
        return "local", f"the exact method would compare {compared:.1e} numbers and hold {held / 1e9:.1f} GB"
    return "exact", f"{n} tasks and {depth} stages are few enough: every vector of widths is solved exactly"


def _takes_long(problem: Problem) -> bool:
    """Whether the exact method takes so long that a tree should be at hand when it is stopped."""
    depth = problem.losses.depth - forced_stages(problem.rules)
    return work(len(problem.losses.tasks), depth)[0] > _LONG_WORK


def _best(problem: Problem, table: WidthTable, limit: float, budget: str, why: str) -> SearchResult:
    sizes = _table_sizes(problem.sizes, table)
    possible = np.isfinite(table.costs)
    feasible = possible & fits(sizes, limit)
    if not feasible.any():
        smallest = float(sizes[possible].min()) if possible.any() else None
        raise infeasible(budget, limit, smallest, problem.sizes)
    best = float(table.costs[feasible].min())
    ceiling = best + table.tolerance
    tied = np.flatnonzero(feasible & (table.costs <= ceiling))
    rows = [int(row) for row in tied if fits(sizes[row], float(sizes[tied].min()))]
    results = [_proven(problem, table, row, ceiling, best, limit, why) for row in rows]
    return min(results, key=lambda result: canonical_order(result.tree, problem.losses.tasks))


def _table_sizes(sizes: SizeModel, table: WidthTable) -> npt.NDArray[np.float64]:
    return np.array([sizes.of_widths(widths) for widths in table.widths.tolist()])


def infeasible(budget: str, limit: float, smallest: float | None, sizes: SizeModel) -> BudgetError:
    """The error for a budget that nothing fits."""
    if smallest is None:
        return BudgetError("no tree meets the constraints; expected some that leave a tree: drop one of them")
    unit = "ms" if sizes.unit == "latency" else sizes.unit
    share = f", {100 * smallest / sizes.separate:.4g}% of separate networks" if sizes.separate else ""
    hint = f"; for a share of separate networks write '{100 * limit:g}% {sizes.unit}'" if _may_be_share(budget) else ""
    known = f"\n{sizes.limited_by}" if sizes.limited_by is not None else ""
    return BudgetError(
        f"no tree fits the budget of {budget} ({limit:.6g} {unit}); the smallest feasible one is "
        f"{smallest:.10g} {unit}{share}{hint}{known}",
        smallest=smallest,
    )


def _may_be_share(budget: str) -> bool:
    return bool(budget) and "%" not in budget and Budget.parse(budget).amount <= 1


def canonical_order(tree: Tree, tasks: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Trees of equal cost and size are ordered by the partitions' growth strings, from the last stage to the first."""
    return tuple(reversed(tree.labels(tasks)))


def _front_rows(table: WidthTable, sizes: npt.NDArray[np.float64]) -> list[int]:
    rows: list[int] = []
    best = math.inf
    for row in np.lexsort((table.costs, sizes)).tolist():
        cost = float(table.costs[row])
        if math.isfinite(cost) and (not rows or cost < best - table.tolerance):
            rows.append(row)
            best = cost
    return rows


def _proven(
    problem: Problem, table: WidthTable, row: int, ceiling: float, least: float, limit: float, why: str
) -> SearchResult:
    """The first tree of these widths up to the ceiling, where no tree within the limit costs less than `least`."""
    result = _result(problem, np.array(table.labels(row, ceiling)), limit, "exact", why)
    bound = result.cost if result.cost <= least + table.slack else least
    return dataclasses.replace(result, lower_bound=bound, proven=True)


def _result(problem: Problem, labels: Labels, limit: float, method: str, why: str) -> SearchResult:
    tree = Tree.from_labels(problem.losses.tasks, labels)
    return SearchResult(
        tree=tree,
        cost=problem.losses.tree_cost(tree),
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
    )


def _searched(
    problem: Problem,
    limit: float,
    budget: str,
    method: str,
    why: str,
    seed: int,
    deadline: Deadline,
    *,
    effort: int = EFFORT,
) -> SearchResult:
    land = problem.landscape(limit)
    smallest = smallest_tree(problem.rules, land.sizes)
    least = land.size(smallest)
    if least > land.limit * (1 + 1e-12):
        raise infeasible(budget, limit, least + problem.sizes.heads, problem.sizes)
    if method == "beam":
        labels, stopped = beam_search(land, deadline, seed=seed), ""
        if labels is None:
            raise infeasible(budget, limit, least + problem.sizes.heads, problem.sizes)
    else:
        found = heuristic_search(land, deadline, seed=seed)
        if found is None:
            raise infeasible(budget, limit, least + problem.sizes.heads, problem.sizes)
        labels, stopped = found.labels, found.stopped
    result = _result(problem, labels, limit, method, "; ".join(filter(None, [why, stopped])))
    known = None if stopped else result.cost
    bounds = rising_bounds(problem.losses, problem.rules, land.sizes, land.limit, target=known, effort=effort)
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
    reached = bound >= result.cost - tie
    return dataclasses.replace(result, lower_bound=min(bound, result.cost), proven=reached, why=why)


def _searched_front(problem: Problem, method: str, why: str, seed: int, deadline: Deadline) -> list[SearchResult]:
    land = problem.landscape(math.inf)
    least = land.size(smallest_tree(problem.rules, land.sizes)) + problem.sizes.heads
    limits = np.geomspace(max(least, 1e-300), max(problem.sizes.separate, least), _FRONT_BUDGETS)
    effort = EFFORT // 4
    points: list[SearchResult] = []
    for limit in limits.tolist():
        points.append(_searched(problem, limit, "", method, why, seed, deadline, effort=effort))
        if "interrupted" in points[-1].why:
            break
    front: list[SearchResult] = []
    for point in sorted(points, key=lambda point: (point.size, point.cost)):
        if not front or point.cost < front[-1].cost - problem.losses.tie:
            front.append(point)
    return front
