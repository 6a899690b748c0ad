"""The best sharing within a budget where it need not be nested: stages are tied by the budget alone.

So each stage is solved by itself, for every width, and then the widths are chosen: exactly for few tasks. For many,
partitions come from a local search, and stages' lower bounds in their place give a bound.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.lower_bounds import stage_tables
from branchnet.clustering.budgets.further_limits import shares_of_limits
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.search_problem import Problem, StitchProblem, infeasible, infeasible_together
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.sharing.stage_partitions import StagePartitions, best_partitions, good_partitions
from branchnet.clustering.sharing.task_sharing import Sharing
from branchnet.clustering.sharing.width_choice import best_choice, rounded
from branchnet.errors import BranchnetError, TreeError

Floats = npt.NDArray[np.float64]
# The exact method looks at 3^(N - 1) pairs of sets at every width and stage.
_EXACT_TASKS = 14


def search_sharing(
    problem: Problem | StitchProblem, limit: float, budget: str, method: str, deadline: Deadline
) -> SearchResult:
    """The sharing of least cost within all budgets, arguments and errors as `search` has them."""
    if isinstance(problem, StitchProblem):
        raise BranchnetError("objective='stitch' follows paths through a tree; expected another one with nested=False")
    if problem.sizes.depths:
        raise TreeError(
            f"{', '.join(problem.sizes.depths)} leave the trunk early, which nested trees alone know; expected "
            "nested=True"
        )
    chosen, why = _method(problem, method)
    losses, tasks = problem.losses.plain, problem.losses.tasks
    find = best_partitions if chosen == "exact" else good_partitions
    try:
        stages = [find(losses, problem.rules, d, deadline) for d in range(losses.depth)]
    except OutOfTime:
        chosen, why = "local", "the exact method was stopped at the time limit"
        stages = [good_partitions(losses, problem.rules, d, deadline) for d in range(losses.depth)]
    costs = np.array([stage.costs for stage in stages])
    shares = shares_of_limits(problem.sizes, limit, problem.further)
    found = best_choice(costs, shares if chosen == "exact" else rounded(shares, up=True), losses.tie)
    if found is None and chosen != "exact":
        found = _smallest(problem, costs, shares)
    if found is None:
        raise _nothing_fits(problem, limit, budget, costs, chosen == "exact")
    widths = found[1]
    sharing = Sharing.from_labels(tasks, [_labels(stage, width) for stage, width in zip(stages, widths, strict=True)])
    cost = _cost(losses, sharing)
    bound = cost if chosen == "exact" else min(cost, _bound(problem, losses, shares))
    return SearchResult(
        tree=None,  # type: ignore[arg-type]  # typed as what all other searches return
        sharing=sharing,
        cost=cost,
        size=problem.sizes.of_widths(widths),
        lower_bound=bound,
        proven=bound >= cost - losses.tie,
        method=chosen,
        why=why,
        objective=problem.objective,
        unit=problem.sizes.unit,
        limit=limit,
        also=tuple(one.resource(widths) for one in problem.further),
        uncounted=problem.sizes.uncounted,
        first_difference=problem.sizes.limited_by,
    )


def _method(problem: Problem, method: str) -> tuple[str, str]:
    n = len(problem.losses.tasks)
    if method not in ("auto", "exact", "local"):
        raise BranchnetError(f"method={method!r} does not know sharing that is not nested; expected 'auto'")
    if method == "exact" and n > _EXACT_TASKS:
        raise BranchnetError(
            f"{n} tasks have too many sets for method='exact', which takes up to {_EXACT_TASKS}; expected method='auto'"
        )
    if method != "auto":
        return method, "asked for"
    if n > _EXACT_TASKS:
        return "local", f"{n} tasks have too many sets for the exact method, which takes up to {_EXACT_TASKS}"
    return "exact", f"{n} tasks are few enough: every stage is solved at every width"


def _labels(stage: StagePartitions, width: int) -> list[int]:
    labels = stage.labels[width]
    assert labels is not None  # widths are chosen among those of finite cost
    return [int(label) for label in labels]


def _cost(losses: StageLosses, sharing: Sharing) -> float:
    place = {task: number for number, task in enumerate(losses.tasks)}
    stages = [
        losses.stage_cost(d, [[place[task] for task in cluster] for cluster in clusters])
        for d, clusters in enumerate(sharing.partitions)
    ]
    return math.fsum([*stages, losses.offset])


def _smallest(problem: Problem, costs: Floats, shares: Floats) -> tuple[float, tuple[int, ...]] | None:
    """The smallest sharing, where rounding the sizes up left nothing and it fits."""
    allowed = np.where(np.isfinite(costs), shares.max(axis=0), np.inf)
    widths = tuple(int(width) for width in allowed.argmin(axis=1))
    stages = np.arange(len(widths))
    fitting = bool((shares[:, stages, list(widths)].sum(axis=1) <= 1 + 1e-12).all())
    return (float(costs[stages, list(widths)].sum()), widths) if fitting else None


def _bound(problem: Problem, losses: StageLosses, shares: Floats) -> float:
    """No sharing that fits costs less: stages at their lower bounds, sizes rounded down."""
    tables = stage_tables(losses)
    widths = np.arange(tables.shape[1])
    least, most = np.array(problem.rules.min_width)[:, None], np.array(problem.rules.max_width)[:, None]
    tables = np.where((widths < np.maximum(least, 1)) | (widths > most), np.inf, tables)
    found = best_choice(tables, rounded(shares, up=False), 0.0)
    return math.inf if found is None else found[0] + losses.offset


def _nothing_fits(problem: Problem, limit: float, budget: str, costs: Floats, exact: bool) -> BranchnetError:
    models = [problem.sizes, *(one.sizes for one in problem.further)]
    allowed = np.isfinite(costs)
    if not allowed.any(axis=1).all():
        return infeasible(budget, limit, None, problem.sizes)
    least = [model.of_widths(np.where(allowed, model.table, np.inf).argmin(axis=1).tolist()) for model in models]
    if not problem.further:
        return infeasible(budget, limit, least[0], problem.sizes)
    return infeasible_together(problem, limit, budget, least, searched=not exact)
