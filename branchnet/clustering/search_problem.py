"""What a search is asked: inputs checked against each other, and the method that fits their size.

There are two kinds of problems, with the same methods: objectives that are sums over clusters, and the objective
`stitch`, whose trees are chains.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.further_limits import FurtherLimit, largest_shares, shares_of_limits
from branchnet.clustering.budgets.tree_sizes import (
    Costs,
    CostsByUnit,
    HeadCosts,
    HeadCostsByUnit,
    PlainCosts,
    SizeModel,
    fits,
    identical_tasks,
    in_unit,
    known_depths,
    size_model,
    stage_shares,
    stages_and_heads,
)
from branchnet.clustering.constraints import Constraints, Rules, rules_of
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.dynamic_program import WidthTable, forced_stages, width_table, work
from branchnet.clustering.heuristics.local_search import Landscape
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE, Objective, no_stage_weights, stage_losses
from branchnet.clustering.pairwise_estimates import expected_losses
from branchnet.clustering.stitching.chain_fronts import ChainTable, chain_table, chain_work
from branchnet.clustering.stitching.stitch_losses import STITCH, StitchLosses, stitch_losses
from branchnet.clustering.stitching.stitch_sizes import StitchSizes, sizes_between
from branchnet.errors import AffinityError, BranchnetError, BudgetError, TreeError
from branchnet.stages.costs import StageCosts

METHODS = ("auto", "exact", "local", "beam", "milp")
Losses = StageLosses | StitchLosses
Measured = Affinity | PairMeasurements | StageLosses
# Up to where `auto` takes the exact method: tasks, numbers compared, bytes held.
_EXACT_TASKS = 12
_EXACT_WORK = 6_000_000_000
_EXACT_BYTES = 6_000_000_000
# The same for chains, whose tables are small for the time that they take.
_CHAIN_WORK = 1_500_000_000
_CHAIN_BYTES = 2_000_000_000
_MOST_BYTES = 32_000_000_000
_OF_TRAINING = ("look-ahead", "first-order", "gradient", "measured")


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a solver needs, checked."""

    losses: StageLosses
    sizes: SizeModel
    rules: Rules
    objective: str
    further: tuple[FurtherLimit, ...] = ()

    def landscape(self, limit: float) -> Landscape:
        """The problem under a budget, for the heuristics; what every tree has is subtracted from the limit."""
        if not self.further:
            return Landscape(self.losses, self.rules, self.sizes.table, limit - self.sizes.fixed)
        shares = shares_of_limits(self.sizes, limit, self.further)
        return Landscape(self.losses, self.rules, largest_shares(shares), 1.0, shares)

    def work(self) -> tuple[int, int]:
        """Numbers that the exact method compares, and bytes that it holds."""
        return work(len(self.losses.tasks), self.losses.depth - forced_stages(self.rules))

    def solve(self, deadline: Deadline) -> WidthTable:
        """The exact method; it raises OutOfTime."""
        return width_table(self.losses, self.rules, deadline)

    def choose(self, method: str) -> tuple[str, str]:
        """The method that runs, and why."""
        n, depth = len(self.losses.tasks), self.losses.depth
        if method == "milp":
            raise BranchnetError("method='milp' solves objective='stitch' only; expected method='auto'")
        compared, held = self.work()
        if method == "exact" and held > _MOST_BYTES:
            raise BranchnetError(
                f"{n} tasks and {depth} stages have too many partitions for the exact method; expected "
                "method='local', which reports a lower bound"
            )
        if method != "auto":
            return method, "asked for"
        if n > _EXACT_TASKS:
            return "local", f"{n} tasks have too many partitions for the exact method, which takes up to {_EXACT_TASKS}"
        if compared > _EXACT_WORK or held > _EXACT_BYTES:
            return "local", f"the exact method would compare {compared:.1e} numbers and hold {held / 1e9:.1f} GB"
        return "exact", f"{n} tasks and {depth} stages are few enough: every vector of widths is solved exactly"


@dataclass(frozen=True, eq=False)
class StitchProblem:
    """The same for the objective `stitch`; `least` and `most` are the D widths that the constraints allow."""

    losses: StitchLosses
    sizes: SizeModel
    least: tuple[int, ...]
    most: tuple[int, ...]
    objective: str = STITCH
    further: tuple[FurtherLimit, ...] = ()

    def allowed_sizes(self, table: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
        """(D, N + 1) size of every stage at every width, or another table; inf where constraints do not allow it."""
        table = self.sizes.table if table is None else table
        width = np.arange(table.shape[1])
        allowed = (width >= np.array(self.least)[:, None]) & (width <= np.array(self.most)[:, None])
        return np.where(allowed, table, np.inf)

    def work(self) -> tuple[int, int]:
        """Numbers that the exact method compares, and bytes that it holds."""
        return chain_work(len(self.losses.tasks), self.losses.depth)

    def solve(self, deadline: Deadline) -> ChainTable:
        """The exact method; it raises OutOfTime."""
        return chain_table(self.losses, self.least, self.most, deadline)

    def choose(self, method: str) -> tuple[str, str]:
        """The method that runs, and why."""
        n, depth = len(self.losses.tasks), self.losses.depth
        if method == "beam":
            raise BranchnetError("method='beam' does not know objective='stitch'; expected method='auto'")
        compared, held = self.work()
        if method == "exact" and held > _MOST_BYTES:
            raise BranchnetError(
                f"{n} tasks and {depth} stages have too many chains for the exact method; expected method='milp', "
                "which reports a lower bound"
            )
        if method != "auto":
            return method, "asked for"
        if compared > _CHAIN_WORK or held > _CHAIN_BYTES:
            return "milp", f"the exact method would compare {compared:.1e} numbers and hold {held / 1e9:.1f} GB"
        return "exact", f"{n} tasks and {depth} stages are few enough: every vector of widths is solved exactly"


def make_problem(
    affinity: Measured,
    costs: CostsByUnit,
    unit: str,
    head_costs: HeadCostsByUnit | None = None,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    stage_weights: Sequence[float] | str | None = None,
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    task_weights: Mapping[str, float] | None = None,
    stitch_sizes: StitchSizes | None = None,
    also: Sequence[Budget | str] = (),
) -> Problem | StitchProblem:
    """Check that the inputs of a search fit together; arguments and errors as `search`.

    `also` has the further budgets, or the units of a front without limits.
    """
    by_stitching = getattr(affinity, "measure", "") == STITCH

    def sized(unit: str) -> tuple[PlainCosts, HeadCosts | None, StitchSizes | None]:
        own, stitches = in_unit(costs, unit), stitch_sizes
        if isinstance(own, StageCosts):  # alone they do not say whether identical weights have been trained since
            own = dataclasses.replace(own, identical=())
        if stitches is None and by_stitching and isinstance(own, Mapping) and unit != "latency":
            stitches = sizes_between(own)
        return *stages_and_heads(own, in_unit(head_costs, unit)), stitches

    every = {unit: sized(unit) for unit in (unit, *(one if isinstance(one, str) else one.unit for one in also))}
    stages, heads, stitches = every[unit]
    if isinstance(stage_weights, str):
        stage_weights = stage_shares(stages, stage_weights, unit)
    given = _with_depths(constraints or Constraints(), affinity, stages)
    if isinstance(affinity, Affinity) and given.depths:
        affinity = dataclasses.replace(affinity, depths=given.depths)
    if isinstance(affinity, Affinity):
        affinity = _lossless(affinity, identical_tasks(stages))
    losses = _losses(affinity, objective, stage_weights, task_weights)
    sizes = size_model(stages, losses.tasks, unit, heads, stitches, given.depths)
    if len(sizes.table) != losses.depth:
        raise BudgetError(
            f"costs has {len(sizes.table)} stages, the affinities {losses.depth}; expected one cost per location"
        )
    if isinstance(affinity, PairMeasurements):
        affinity = affinity.affinity()
    if isinstance(affinity, Affinity) and isinstance(stages, StageCosts):
        affinity.check_locations(stages.names, "the costs")
    if shared_stages:
        given = dataclasses.replace(given, shared_stages=max(shared_stages, given.shared_stages))
    rules = rules_of(given, losses.tasks, losses.depth)
    further = []
    for one in also:
        unit, budget = (one, None) if isinstance(one, str) else (one.unit, one)
        stages, heads, stitches = every[unit]
        model = size_model(stages, losses.tasks, unit, heads, stitches, given.depths)
        if len(model.table) != losses.depth:
            raise BudgetError(f"costs in {unit} have {len(model.table)} stages, the affinities {losses.depth}")
        further.append(FurtherLimit(model, math.inf if budget is None else model.limit(budget), budget))
    if isinstance(losses, StitchLosses):
        return StitchProblem(losses, sizes, *_widths_only(given, rules), further=tuple(further))
    return Problem(losses, sizes, rules, losses.name, tuple(further))


def _lossless(affinity: Affinity, identical: Sequence[Sequence[Sequence[str]]]) -> Affinity:
    """The affinity with 1 for tasks with identical weights, where it is a similarity of features or outputs.

    What effects of training steps and of sharing are measured as is another matter.
    """
    if affinity.measure.startswith(_OF_TRAINING) or len(identical) != len(affinity.locations):
        return affinity
    values = affinity.values.copy()
    for stage, groups in enumerate(identical):
        for group in groups:
            members = np.array([affinity.tasks.index(task) for task in group if task in affinity.tasks], np.intp)
            values[stage, members[:, None], members] = 1.0
    return dataclasses.replace(affinity, values=values)


def _with_depths(given: Constraints, affinity: Measured, costs: Costs) -> Constraints:
    """The constraints with the tasks that leave the trunk early, as the affinity, the costs or they themselves say."""
    tasks = tuple(affinity.tasks)
    sources = {
        "the constraints": given.depths,
        "the affinity": affinity.depths if isinstance(affinity, Affinity) else {},
        "the costs": known_depths(costs, tasks),
    }
    known = {name: dict(depths) for name, depths in sources.items() if depths}
    for (name, depths), (other, theirs) in pairwise(known.items()):
        if depths != theirs:
            raise TreeError(
                f"tasks leave the trunk at {depths} in {name}, at {theirs} in {other}; expected the same: measure and "
                "search with the result of one split_all"
            )
    return dataclasses.replace(given, depths=next(iter(known.values()), {}))


def _losses(
    affinity: Measured,
    objective: str | Objective,
    stage_weights: Sequence[float] | None,
    task_weights: Mapping[str, float] | None,
) -> Losses:
    if isinstance(affinity, Affinity):
        if objective != STITCH:
            return stage_losses(affinity, objective, stage_weights, task_weights).sparing(affinity)
        if stage_weights is not None:
            raise no_stage_weights()
        return stitch_losses(affinity, task_weights).sparing(affinity)
    for name, weights in (("stage_weights", stage_weights), ("task_weights", task_weights)):
        if weights is not None:
            raise AffinityError(f"{name} weigh similarities, and losses are given; expected {name}=None")
    return expected_losses(affinity) if isinstance(affinity, PairMeasurements) else affinity


def _widths_only(given: Constraints, rules: Rules) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths that constraints allow, where they restrict nothing else."""
    if given.together or given.apart or given.extend is not None:
        raise TreeError(
            "objective='stitch' does not take the constraints together, apart and extend, which restrict clusters; "
            "expected shared_stages, separate_stages and max_clusters only"
        )
    n, depth = rules.together.shape[1], len(rules.max_width)
    separate = depth - given.separate_stages
    return tuple(n if d >= separate else rules.min_width[d] for d in range(depth)), rules.max_width


def warn_uncounted(sizes: SizeModel) -> None:
    """Warn where FLOPs count nothing for some operators."""
    if sizes.uncounted:
        warnings.warn(
            f"sizes in FLOPs count nothing for {', '.join(sizes.uncounted)}, which have no formula: stages that spend "
            "their time there look too cheap; a budget in params or ms does not depend on it",
            stacklevel=3,
        )


def warn_limited(sizes: SizeModel) -> None:
    """Warn where networks part before half of their parameters."""
    if sizes.limited_by is not None:
        warnings.warn(str(sizes.limited_by), stacklevel=3)


def choose_method(problem: Problem | StitchProblem, method: str) -> tuple[str, str]:
    """The method that runs, and why."""
    if method not in METHODS:
        raise BranchnetError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    return problem.choose(method)


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


def infeasible_together(
    problem: Problem | StitchProblem, limit: float, budget: str, least: Sequence[float], *, searched: bool = False
) -> BudgetError:
    """The error for budgets that nothing fits: the one that binds, or that they do so together.

    Args:
        problem: with its further budgets.
        limit: of the first budget.
        budget: all of them, as written.
        least: the smallest size in each unit that any tree has.
        searched: whether trees were searched by a method that may miss one, so that none was found only.
    """
    others = [(one.sizes, one.limit, str(one.budget)) for one in problem.further]
    limits = [(problem.sizes, limit, budget.split(", ")[0]), *others]
    for (sizes, most, written), size in zip(limits, least, strict=True):
        if not fits(size, most):
            return infeasible(written, most, size, sizes)
    smallest = ", ".join(f"{size:.10g} {sizes.unit}" for (sizes, _, _), size in zip(limits, least, strict=True))
    if searched:
        return BudgetError(
            f"no tree was found that fits the budgets {budget} together, though some tree fits each of them, and one "
            f"that fits all may exist; the smallest sizes are {smallest}: relax one of them, or try method='exact'"
        )
    return BudgetError(
        f"no tree fits the budgets {budget} together, though some tree fits each of them; the smallest sizes are "
        f"{smallest}, not all of one tree: relax one of them"
    )


def _may_be_share(budget: str) -> bool:
    return bool(budget) and "%" not in budget and Budget.parse(budget).amount <= 1
