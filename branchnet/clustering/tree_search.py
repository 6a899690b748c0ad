"""The entry points: the best tree under a budget, and the whole front of cost against size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.budgets.budget import AnyBudget, Budget, as_budget
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit, SizeModel, fits
from branchnet.clustering.constraints import Constraints
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.exact.dynamic_program import WidthTable
from branchnet.clustering.exact.subset_front import front_under_subsets
from branchnet.clustering.exact.subset_search import search_under_subsets, task_limits
from branchnet.clustering.heuristics.bounded_search import AnyProblem, judged, searched, searched_front
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE, Objective
from branchnet.clustering.search_problem import (
    choose_method,
    infeasible,
    infeasible_together,
    make_problem,
    warn_limited,
    warn_uncounted,
)
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.sharing.sharing_search import search_sharing
from branchnet.clustering.stitching.chain_fronts import ChainTable
from branchnet.clustering.stitching.stitch_sizes import StitchSizes
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BudgetError

Table = WidthTable | ChainTable
# From here on a local search comes first, so that an interrupted exact search has a tree to return.
_LONG_WORK = 200_000_000


def search(
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: CostsByUnit,
    budget: AnyBudget,
    *,
    head_costs: HeadCostsByUnit | None = None,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    stage_weights: Sequence[float] | str | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    task_weights: Mapping[str, float] | None = None,
    stitch_sizes: StitchSizes | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    progress: bool = False,
    nested: bool = True,
) -> SearchResult:
    """The tree of least cost that fits the budget, with a bound on how much better any other could be.

    Ties (costs that differ by no more than 1e-9 of the largest dissimilarity possible under the measure) go to the
    smaller size, then to the first in canonical order. Interrupted, or at the time
    limit, the best tree so far is returned with its bound; `why` says so. With stitching losses, pairs near a constant
    predictor are shared only where the budget forces it; `forced` names them.

    Args:
        affinity: values (D, N, N), larger = better shared; or PairMeasurements, by their expected losses
            (`expected_losses`); or StageLosses. The latter two are objectives themselves: `objective` is not used.
        costs: the staged networks by task, the result of `split_all`, whose heads count, too; or StageCosts, one number
            per stage, or a table `costs[stage][width]` for widths 0..N. For budgets in several units, of which these
            tell one alone, by unit: `{"params": staged, "latency": table.costs}`.
        budget: a Budget, its text, or a number of parameters. A relative one is a share of N separate networks, heads
            included where they are known. Several at once, `"60% params, 45% flops"`, or a list: the tree meets all.
            `"8 ms for depth+edges"` counts nodes that serve one of these tasks, their heads, and the stitches of a
            network of these tasks alone (exact up to 10 tasks; percentages are of all separate networks, too).
        head_costs: `{task: number or StageCost}`; None = those of the staged networks; with other costs, heads are
            not counted then.
        objective: how trees are judged, see `branchnet.clustering.objectives`; the paper's is `"mean-max"`. Directed
            affinities, such as `stitch_affinity`, need `"medoid"` or `"stitch"`.
        stage_weights: D factors of the stages' terms, or `"params"` or `"flops"`: by what a stage costs (see
            `stage_shares`); None = 1.
        method: `"exact"` (dynamic programme over all partitions), `"local"` (starts and local search), `"beam"` (the
            published beam search with spectral clustering), `"milp"` (for `"stitch"`: local search, then an integer
            programme, by default for a minute), or `"auto"`: exact where it fits in time and memory.
        shared_stages: the first so many stages are shared by all tasks; a short form of the constraint.
        constraints: further restrictions; `"stitch"` takes those on widths alone (shared_stages, separate_stages,
            max_clusters).
        task_weights: `{task: weight}` of what tasks lose, for `"medoid"` and `"stitch"`; None = those of the affinity.
        stitch_sizes: the size of one stitch at each of the D locations, in the budget's unit, or these by unit; None =
            with stitching losses and staged networks those between them, otherwise stitches are not counted. A tree
            with widths w needs w[d + 1] - w[d] of them at location d, N - w[D - 1] at the last.
        seed: for the methods that draw random numbers.
        time_limit: seconds; None = no limit.
        progress: whether to draw a progress bar on stderr.
        nested: whether tasks that part stay apart, as the outputs of several tasks for one input need it. False: a
            `Sharing`, for inputs that belong to one task each; it saves memory, and no computation. Exact up to 14
            tasks; not for `"stitch"`, nor for tasks that leave the trunk early.

    Returns:
        The tree, or with `nested=False` the `sharing`, its cost and size, and a lower bound on the cost of every tree
        within the budget.

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
    if any(one.tasks for one in wanted.each):
        return _under_subsets(
            wanted, method, nested, seed, time_limit, progress, affinity, costs, head_costs, objective, stage_weights,
            shared_stages, constraints, task_weights, stitch_sizes,
        )  # fmt: skip
    problem = make_problem(
        affinity,
        costs,
        wanted.unit,
        head_costs,
        objective,
        stage_weights,
        shared_stages,
        constraints,
        task_weights,
        stitch_sizes,
        wanted.also,
    )
    limit = problem.sizes.limit(wanted)
    warn_uncounted(problem.sizes)
    warn_limited(problem.sizes)
    if not nested:
        _check_free_stages(constraints)
        with Deadline(time_limit, show=progress) as deadline:
            return search_sharing(problem, limit, str(wanted), method, deadline)
    chosen, why = choose_method(problem, method)
    with Deadline(time_limit, show=progress) as deadline:
        if chosen != "exact":
            return searched(problem, limit, str(wanted), chosen, why, seed, deadline)
        known: SearchResult | None = None
        try:
            if _takes_long(problem):
                known = searched(problem, limit, str(wanted), "local", "", seed, deadline)
                if known.why:
                    return dataclasses.replace(known, why=f"{known.why} before the exact method began")
            table = problem.solve(deadline)
        except (OutOfTime, KeyboardInterrupt) as stop:
            reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped at the time limit"
            why = f"the exact method was {reason}; this is the best tree of the local search before it"
            known = known or searched(problem, limit, str(wanted), "local", "", seed, Deadline(0.0))
            return dataclasses.replace(known, why=why)
    return _best(problem, table, limit, str(wanted), why)


def pareto_front(
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: CostsByUnit,
    *,
    unit: str | Sequence[str] = "params",
    budget: AnyBudget | None = None,
    head_costs: HeadCostsByUnit | None = None,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    stage_weights: Sequence[float] | str | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    task_weights: Mapping[str, float] | None = None,
    stitch_sizes: StitchSizes | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[SearchResult]:
    """Every trade between size and cost, smallest tree first: no tree is as small and cheaper, or as cheap and smaller.

    By the exact method the front is complete and proven. For many tasks it is searched at 24 budgets, each point with
    its own bound; interrupted, it ends there. With stitching losses the fewest pairs near a constant predictor come
    first (`forced`), so a larger tree may cost more where it does without one.

    Args:
        affinity: as `search` takes it.
        costs: as `search` takes them.
        unit: the unit in which sizes are counted: `"params"`, `"flops"` or `"latency"`; or several of them, by the
            exact method: no point needs as little of each and costs less, or costs as little and needs less.
        budget: budgets for some of the tasks that every point meets, such as `"8 ms for depth+edges"`; with one unit.
        head_costs: as `search` takes them.
        objective: as `search` takes it.
        stage_weights: as `search` takes them.
        method: as `search` takes it.
        shared_stages: as `search` takes it.
        constraints: as `search` takes them.
        task_weights: as `search` takes them.
        stitch_sizes: as `search` takes them.
        seed: as `search` takes it.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The points of the front, sizes rising and costs falling; of several units ordered by the first, the sizes in
        the others in `also`.

    Raises:
        BudgetError: no tree meets the constraints or the budget, costs do not fit the affinities, or a budget for all
            tasks, which a front shows anyway.
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
    first, *others = [unit] if isinstance(unit, str) else unit
    if budget is not None:
        given = (objective, stage_weights, shared_stages, constraints, task_weights, stitch_sizes)
        return _front_under_subsets(
            [first, *others], as_budget(budget), method, seed, progress, affinity, costs, head_costs, *given
        )
    problem = make_problem(
        affinity,
        costs,
        first,
        head_costs,
        objective,
        stage_weights,
        shared_stages,
        constraints,
        task_weights,
        stitch_sizes,
        others,
    )
    warn_uncounted(problem.sizes)
    chosen, why = choose_method(problem, method)
    with Deadline(show=progress) as deadline:
        if chosen != "exact" and others:
            raise BudgetError(
                f"a front over {', '.join([first, *others])} needs the exact method ({why}); expected one unit"
            )
        if chosen != "exact":
            return searched_front(problem, chosen, why, seed, deadline)
        table = problem.solve(deadline)
    if others:
        sizes = [_table_sizes(model, table) for model in (problem.sizes, *(one.sizes for one in problem.further))]
        rows = _surface_rows(table, np.array(sizes))
    else:
        rows = _front_rows(table, _table_sizes(problem.sizes, table))
    costs = [float(table.costs[row]) for row in rows]
    return [
        _proven(problem, table, row, cost + table.tolerance, cost, math.inf, why)
        for row, cost in zip(rows, costs, strict=True)
    ]


def _check_free_stages(constraints: Constraints | None) -> None:
    limits = None if constraints is None else constraints.max_clusters
    if isinstance(limits, Sequence) and any(later < earlier for earlier, later in pairwise(limits)):
        raise BudgetError(
            f"max_clusters={list(limits)} falls from one stage to the next, which ties the stages of trees together; "
            "expected limits that do not fall where nested=False"
        )


def _under_subsets(
    wanted: Budget,
    method: str,
    nested: bool,
    seed: int,
    time_limit: float | None,
    progress: bool,
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: CostsByUnit,
    head_costs: HeadCostsByUnit | None,
    *others: Any,
) -> SearchResult:
    """The best tree under budgets of which some are for some of the tasks; `others` as `make_problem` takes them."""
    if not nested:
        raise BudgetError("a call of a network that is not nested computes one task; expected budgets for all tasks")
    problem, limits = task_limits(wanted.each, wanted.unit, affinity, costs, head_costs, *others)
    warn_uncounted(problem.sizes)
    warn_limited(problem.sizes)
    with Deadline(time_limit, show=progress) as deadline:
        return search_under_subsets(problem, limits, method, seed, deadline)


def _front_under_subsets(
    units: Sequence[str],
    wanted: Budget,
    method: str,
    seed: int,
    progress: bool,
    affinity: Affinity | PairMeasurements | StageLosses,
    costs: CostsByUnit,
    head_costs: HeadCostsByUnit | None,
    *others: Any,
) -> list[SearchResult]:
    """The front under budgets for some of the tasks; `others` as `make_problem` takes them."""
    if whole := [one for one in wanted.each if not one.tasks]:
        raise BudgetError(
            f"the budget {whole[0]} is for all tasks, and a front has every size; expected budgets for some of them, "
            "such as '8 ms for depth+edges'"
        )
    if len(units) > 1:
        raise BudgetError(
            f"a front over {', '.join(units)} under budgets for some of the tasks would have trees that differ in what "
            f"these need alone; expected one unit, such as unit={units[0]!r}"
        )
    problem, limits = task_limits(wanted.each, units[0], affinity, costs, head_costs, *others)
    warn_uncounted(problem.sizes)
    with Deadline(show=progress) as deadline:
        return front_under_subsets(problem, limits, method, seed, deadline)


def _takes_long(problem: AnyProblem) -> bool:
    """Whether the exact method takes so long that a tree should be at hand when it is stopped."""
    return problem.work()[0] > _LONG_WORK


def _best(problem: AnyProblem, table: Table, limit: float, budget: str, why: str) -> SearchResult:
    sizes = _table_sizes(problem.sizes, table)
    possible = np.isfinite(table.costs)
    further = [_table_sizes(one.sizes, table) for one in problem.further]
    feasible = possible & fits(sizes, limit)
    for one, known in zip(problem.further, further, strict=True):
        feasible &= fits(known, one.limit)
    if not feasible.any():
        if further and possible.any():
            least = [float(known[possible].min()) for known in (sizes, *further)]
            raise infeasible_together(problem, limit, budget, least)
        smallest = float(sizes[possible].min()) if possible.any() else None
        raise infeasible(budget, limit, smallest, problem.sizes)
    best = float(table.costs[feasible].min())
    ceiling = best + table.tolerance
    tied = np.flatnonzero(feasible & (table.costs <= ceiling))
    rows = [int(row) for row in tied if fits(sizes[row], float(sizes[tied].min()))]
    results = [_proven(problem, table, row, ceiling, best, limit, why) for row in rows]
    return min(results, key=lambda result: canonical_order(result.tree, problem.losses.tasks))


def _table_sizes(sizes: SizeModel, table: Table) -> npt.NDArray[np.float64]:
    return np.array([sizes.of_widths(widths) for widths in table.widths.tolist()])


def canonical_order(tree: Tree, tasks: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Trees of equal cost and size are ordered by the partitions' growth strings, from the last stage to the first."""
    return tuple(reversed(tree.labels(tasks)))


def _front_rows(table: Table, sizes: npt.NDArray[np.float64]) -> list[int]:
    rows: list[int] = []
    best = math.inf
    for row in np.lexsort((table.costs, sizes)).tolist():
        cost = float(table.costs[row])
        if math.isfinite(cost) and (not rows or cost < best - table.tolerance):
            rows.append(row)
            best = cost
    return rows


def _surface_rows(table: Table, sizes: npt.NDArray[np.float64]) -> list[int]:
    """Rows that no other one is as good as in every size, (units, V), and in cost; the smallest in the first first."""
    rows: list[int] = []
    order = np.lexsort((table.costs, *sizes[::-1]))
    for row in order[np.isfinite(table.costs[order])].tolist():
        kept = np.array(rows, dtype=np.int64)
        smaller = (sizes[:, kept] <= sizes[:, row, None] * (1 + 1e-12)).all(axis=0)
        if not (smaller & (table.costs[kept] <= table.costs[row] + table.tolerance)).any():
            rows.append(row)
    return rows


def _proven(
    problem: AnyProblem, table: Table, row: int, ceiling: float, least: float, limit: float, why: str
) -> SearchResult:
    """The first tree of these widths up to the ceiling, where no tree within the limit costs less than `least`."""
    result = judged(problem, np.array(table.labels(row, ceiling)), limit, "exact", why)
    least -= problem.losses.surcharge * len(result.forced)
    bound = result.cost if result.cost <= least + table.slack else least
    return dataclasses.replace(result, lower_bound=bound, proven=True)
