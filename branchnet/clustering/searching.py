"""The entry points: the best tree under a budget, and the whole front of cost against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.budgets import Budget, Costs, HeadCosts, SizeModel, as_budget, fits, size_model
from branchnet.clustering.constraints import Constraints, Rules, rules_of
from branchnet.clustering.exact import WidthTable, width_table
from branchnet.clustering.objectives import Objective, StageLosses, stage_losses
from branchnet.clustering.results import SearchResult
from branchnet.clustering.tree import Tree
from branchnet.errors import BudgetError


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a solver needs, checked."""

    losses: StageLosses
    sizes: SizeModel
    rules: Rules
    objective: str


def search(
    affinity: Affinity | StageLosses,
    costs: Costs,
    budget: Budget | float | str,
    *,
    head_costs: HeadCosts | None = None,
    objective: str | Objective = "mean-max",
    stage_weights: Sequence[float] | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    seed: int = 0,
) -> SearchResult:
    """The tree of least cost that fits the budget.

    Args:
        affinity: values (D, N, N), larger = better shared.
        costs: StageCosts, one number per stage, or a table `costs[stage][width]`.
        budget: a Budget, its text, or a number of parameters. A relative one is a share of N separate networks, heads
            included where they are known.
        head_costs: `{task: number or StageCost}`; None = heads are not counted.
        objective: see `branchnet.clustering.objectives`.
        stage_weights: D factors of the stages' terms; None = 1.
        method: `"auto"` or `"exact"`.
        shared_stages: the first so many stages are shared by all tasks; a short form of the constraint.
        constraints: further restrictions.
        seed: for the methods that draw random numbers.

    Raises:
        BudgetError: nothing fits; the error names the smallest feasible size.
        AffinityError, TreeError: inputs that do not fit together.
    """
    wanted = as_budget(budget)
    problem = _problem(affinity, costs, wanted.unit, head_costs, objective, stage_weights, shared_stages, constraints)
    table = width_table(problem.losses, problem.rules)
    return _best(problem, table, problem.sizes.limit(wanted), str(wanted))


def pareto_front(
    affinity: Affinity | StageLosses,
    costs: Costs,
    *,
    unit: str = "params",
    head_costs: HeadCosts | None = None,
    objective: str | Objective = "mean-max",
    stage_weights: Sequence[float] | None = None,
    shared_stages: int = 0,
    constraints: Constraints | None = None,
) -> list[SearchResult]:
    """Every trade between size and cost: from the smallest tree to the cheapest, each the best of its size.

    The arguments are those of `search`; `unit` is the unit in which sizes are counted.
    """
    problem = _problem(affinity, costs, unit, head_costs, objective, stage_weights, shared_stages, constraints)
    table = width_table(problem.losses, problem.rules)
    return [_result(problem, table, row, math.inf) for row in _front_rows(table, _sizes(problem.sizes, table))]


def _problem(
    affinity: Affinity | StageLosses,
    costs: Costs,
    unit: str,
    head_costs: HeadCosts | None,
    objective: str | Objective,
    stage_weights: Sequence[float] | None,
    shared_stages: int,
    constraints: Constraints | None,
) -> Problem:
    losses = stage_losses(affinity, objective, stage_weights)
    sizes = size_model(costs, losses.tasks, unit, head_costs)
    if len(sizes.table) != losses.depth:
        raise BudgetError(f"there are costs of {len(sizes.table)} stages but affinities of {losses.depth}")
    given = constraints or Constraints()
    if shared_stages:
        given = Constraints(**{**given.__dict__, "shared_stages": max(shared_stages, given.shared_stages)})
    name = objective if isinstance(objective, str) else objective.name
    return Problem(losses, sizes, rules_of(given, losses.tasks, losses.depth), name)


def _sizes(sizes: SizeModel, table: WidthTable) -> np.ndarray:
    return np.array([sizes.of_widths(widths) for widths in table.widths.tolist()])


def _best(problem: Problem, table: WidthTable, limit: float, budget: str) -> SearchResult:
    sizes = _sizes(problem.sizes, table)
    possible = np.isfinite(table.costs)
    feasible = possible & fits(sizes, limit)
    if not feasible.any():
        smallest = float(sizes[possible].min()) if possible.any() else None
        raise infeasible(budget, limit, smallest, problem.sizes)
    best = float(table.costs[feasible].min())
    tied = np.flatnonzero(feasible & (table.costs <= best + table.tolerance(best)))
    smallest_tied = float(sizes[tied].min())
    rows = [int(row) for row in tied if fits(sizes[row], smallest_tied)]
    results = [_result(problem, table, row, limit) for row in rows]
    return min(results, key=lambda result: canonical_order(result.tree, problem.losses.tasks))


def infeasible(budget: str, limit: float, smallest: float | None, sizes: SizeModel) -> BudgetError:
    """The error for a budget that nothing fits."""
    if smallest is None:
        return BudgetError("no tree meets the constraints")
    share = f", {100 * smallest / sizes.separate:.4g}% of separate networks" if sizes.separate else ""
    return BudgetError(
        f"no tree fits the budget of {budget} ({limit:.6g} {sizes.unit}); the smallest feasible one is "
        f"{smallest:.10g} {sizes.unit}{share}",
        smallest=smallest,
    )


def canonical_order(tree: Tree, tasks: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Trees of equal cost and size are ordered by the partitions' growth strings, from the last stage to the first."""
    return tuple(reversed(tree.labels(tasks)))


def _front_rows(table: WidthTable, sizes: np.ndarray) -> list[int]:
    rows: list[int] = []
    best = math.inf
    for row in np.lexsort((table.costs, sizes)).tolist():
        cost = float(table.costs[row])
        if math.isfinite(cost) and (not rows or cost < best - table.tolerance(best)):
            rows.append(row)
            best = cost
    return rows


def _result(problem: Problem, table: WidthTable, row: int, limit: float) -> SearchResult:
    tree = Tree.from_labels(problem.losses.tasks, table.labels(row))
    cost = problem.losses.tree_cost(tree)
    return SearchResult(
        tree=tree,
        cost=cost,
        size=problem.sizes.of_widths(tree.widths),
        lower_bound=cost,
        proven=True,
        method="exact",
        why=f"all {len(table.costs)} vectors of widths were solved exactly over the lattice of partitions",
        objective=problem.objective,
        unit=problem.sizes.unit,
        limit=limit,
    )
