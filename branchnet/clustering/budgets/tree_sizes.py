"""What a tree of given widths costs in a budget's unit.

A tree's size is the sum over stages of the cost of its copies of that stage, plus all heads where they are known.
Parameters and FLOPs (one multiply-add is one FLOP) grow linearly with the copies; a latency may come from a table
`table[stage][width]` that was measured for every number of copies.

Stitches are counted where their sizes are given, see `stitching.stitch_sizes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.clustering.budgets.budget import UNITS, Budget
from branchnet.clustering.stitching.stitch_sizes import StitchSizes, with_stitches
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BudgetError
from branchnet.stages.costs import FirstDifference, StageCost, StageCosts

Floats = npt.NDArray[np.float64]
PlainCosts = StageCosts | Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.float64]


class CountedNetwork(Protocol):
    """A staged network, as far as sizes are concerned."""

    @property
    def costs(self) -> StageCosts:
        """Of one copy of each stage."""

    @property
    def head_cost(self) -> StageCost:
        """Of what follows the last stage."""


Costs = PlainCosts | Mapping[str, CountedNetwork]
"""What stages cost; or the staged networks by task, the result of `split_all`, whose heads count, too."""
HeadCosts = Mapping[str, float] | Mapping[str, StageCost]
CostsByUnit: TypeAlias = Costs | Mapping[str, Costs]
"""The same, or for several budgets one for each unit."""
HeadCostsByUnit: TypeAlias = HeadCosts | Mapping[str, HeadCosts]
TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class SizeModel:
    """What trees cost in one unit.

    Attributes:
        table: (D, N + 1), never negative; what w copies of stage d add to the size, and 0 for w = 0.
        fixed: what every tree has: all heads, where they are counted, and what stitches add whatever the widths are.
        unit: the unit of these numbers.
        uncounted: operators that FLOPs count as nothing; none in another unit.
        limited_by: where the networks' structures part, if less than half of the parameters lies before.
        depths: how many stages the tasks pass that leave the trunk early. They count in the widths of the later ones,
            and nothing in their sizes: the table has what is left of a width without them.
        identical: for each stage the groups of tasks with identical weights up to its end; empty where not known.
        last_stitch: the size of one stitch at the last location, which `fixed` has once for every task.
    """

    table: Floats
    fixed: float
    unit: str
    uncounted: tuple[str, ...] = ()
    limited_by: FirstDifference | None = None
    depths: Mapping[str, int] = field(default_factory=dict)
    identical: tuple[tuple[tuple[str, ...], ...], ...] = ()
    last_stitch: float = 0.0

    @property
    def separate(self) -> float:
        """Size of N separate networks."""
        return self.of_widths([self.table.shape[1] - 1] * len(self.table))

    @property
    def largest(self) -> float:
        """At least the size of every tree; more than `separate` only where stages need not grow with their width."""
        return max(self.separate, math.fsum([*self.table.max(axis=1).tolist(), self.fixed]))

    def of_widths(self, widths: Sequence[int]) -> float:
        """Size of a tree with these widths."""
        stages = [float(row[width]) for row, width in zip(self.table, widths, strict=True)]
        return math.fsum([*stages, self.fixed])

    def limit(self, budget: Budget) -> float:
        """The budget in this unit as an absolute number."""
        if limited := [str(one) for one in budget.each if one.tasks]:
            raise BudgetError(f"the budget {limited[0]!r} is for some of the tasks, which search() alone knows")
        budget = next((one for one in budget.each if one.unit == self.unit), budget)
        if budget.unit != self.unit:
            raise BudgetError(f"the budget is in {budget.unit}; expected {self.unit}, as the costs are in it")
        return budget.amount * self.separate if budget.relative else float(budget.amount)


def fits(size: float | Floats, limit: float) -> bool | npt.NDArray[np.bool_]:
    """Whether a size is within a limit, up to a relative 1e-12 of rounding: 60% of N networks may be 0.6 N exactly."""
    return size <= limit + TOLERANCE * abs(limit)


def in_unit(costs: Any, unit: str) -> Any:
    """What is given by unit, in one of them; what is not given by unit as it is.

    Args:
        costs: of stages or heads.
        unit: the one that is wanted.

    Raises:
        BudgetError: nothing is given for the unit.
    """
    if not isinstance(costs, Mapping) or not costs or not set(costs) <= set(UNITS):
        return costs
    if any(hasattr(value, "costs") or isinstance(value, float | int | StageCost) for value in costs.values()):
        return costs  # of tasks that are called as units are
    if unit not in costs:
        raise BudgetError(f"costs are given in {', '.join(costs)}, the budget in {unit}; expected costs in it, too")
    return costs[unit]


def stages_and_heads(costs: Costs, head_costs: HeadCosts | None) -> tuple[PlainCosts, HeadCosts | None]:
    """The costs of the stages and of the heads, where staged networks may stand in place of both.

    Args:
        costs: as `search` takes them.
        head_costs: of the heads; given, they count instead of those of the networks.

    Returns:
        Costs of the stages, which all networks have in common, and of the heads.

    Raises:
        BudgetError: something else than staged networks.
    """
    if not isinstance(costs, Mapping):
        return costs, head_costs
    for task, network in costs.items():
        if not isinstance(getattr(network, "costs", None), StageCosts):
            raise BudgetError(
                f"costs[{task!r}] is a {type(network).__name__}; expected staged networks by task, the result of "
                "branchnet.split_all"
            )
    if not costs:
        raise BudgetError("costs is empty; expected the staged networks by task, the result of branchnet.split_all")
    heads = {task: network.head_cost for task, network in costs.items()} if head_costs is None else head_costs
    return _now_identical(costs), heads


def _now_identical(networks: Mapping[str, Any]) -> StageCosts:
    """The costs of staged networks, with what is identical now: weights may have changed since they were split."""
    costs: StageCosts = next(iter(networks.values())).costs
    if not costs.identical:
        return costs
    from branchnet.stages import identical_prefixes  # networks are at hand, so torch is imported already

    return replace(costs, identical=identical_prefixes(networks))


def size_model(
    costs: CostsByUnit,
    tasks: Sequence[str],
    unit: str,
    head_costs: HeadCostsByUnit | None,
    stitch_sizes: StitchSizes | None = None,
    depths: Mapping[str, int] | None = None,
) -> SizeModel:
    """Costs per stage and width, and of all heads, in `unit`.

    Args:
        costs: StageCosts, one number per stage, a table `costs[stage][width]` for widths 0..N, or staged networks.
        tasks: the N task names.
        unit: `"params"`, `"flops"` or `"latency"`; plain numbers and tables are taken to be in it.
        head_costs: `{task: number or StageCost}`, or None where heads are not counted.
        stitch_sizes: size of one stitch at each location, or these by unit; None where stitches are not counted.
        depths: how many stages the tasks pass that leave the trunk early; None = as the costs say.

    Raises:
        BudgetError: costs or sizes that are negative, not finite or of the wrong shape, heads that do not match the
            tasks, or a latency asked of StageCosts, which know none.
    """
    costs, head_costs = stages_and_heads(in_unit(costs, unit), in_unit(head_costs, unit))
    table = _table(costs, len(tasks), unit)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise BudgetError(f"costs is {np.array(costs, dtype=object)}; expected finite numbers, none of them negative")
    uncounted = uncounted_operators(costs, head_costs) if unit == "flops" else ()
    early = known_depths(costs, tasks) if depths is None else depths
    table = _without_left(table, [early.get(task, len(table)) for task in tasks])
    table, stitches, last = with_stitches(table, stitch_sizes, unit)
    difference = costs.first_difference if isinstance(costs, StageCosts) else None
    limited_by = difference if difference is not None and difference.limits else None
    fixed = _heads(head_costs, tasks, unit) + stitches
    return SizeModel(table, fixed, unit, uncounted, limited_by, early, identical_tasks(costs), last)


def subset_model(
    sizes: SizeModel, tasks: Sequence[str], costs: CostsByUnit, head_costs: HeadCostsByUnit | None
) -> SizeModel:
    """The sizes of what some of the tasks need: of the heads theirs alone; widths are those of their nodes.

    Stitches are those of a network of these tasks alone.

    Args:
        sizes: of all tasks.
        tasks: those that count.
        costs, head_costs: what `sizes` was made of.

    Raises:
        BudgetError: tasks leave the trunk early.
    """
    if sizes.depths:
        raise BudgetError(
            f"a budget for some of the tasks does not count tasks that leave the trunk early, here "
            f"{', '.join(sizes.depths)}; expected budgets for all tasks"
        )
    _, heads = stages_and_heads(in_unit(costs, sizes.unit), in_unit(head_costs, sizes.unit))
    others = [] if heads is None else [_head_cost(heads[task], task, sizes.unit) for task in heads if task not in tasks]
    absent = sizes.table.shape[1] - 1 - len(tasks)
    if not absent:
        return sizes
    return replace(sizes, fixed=math.fsum([sizes.fixed, *(-cost for cost in others), -absent * sizes.last_stitch]))


def identical_tasks(costs: Costs) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """For each stage the groups of tasks with identical weights up to its end, as far as the costs say it."""
    return costs.identical if isinstance(costs, StageCosts) else ()


def known_depths(costs: Costs, tasks: Sequence[str]) -> dict[str, int]:
    """How many stages those of the tasks pass that leave the trunk early, as far as the costs say it."""
    costs, _ = stages_and_heads(costs, None)
    found = costs.depths if isinstance(costs, StageCosts) else {}
    return {task: found[task] for task in tasks if task in found}


def _without_left(table: Floats, depths: Sequence[int]) -> Floats:
    """The table by numbers of clusters, those of tasks that have left the trunk included: these cost nothing."""
    left = np.sum(np.arange(len(table))[:, None] >= np.array(depths), axis=1)
    copies = np.maximum(np.arange(table.shape[1]) - left[:, None], 0)
    return np.take_along_axis(table, copies, axis=1)


def _table(costs: PlainCosts, n_tasks: int, unit: str) -> Floats:
    if isinstance(costs, StageCosts):
        if unit == "latency":
            raise BudgetError(
                "costs is a StageCosts, which knows no latency; expected a table costs[stage][width] in milliseconds: "
                "see latency_table()"
            )
        numbers = np.array(getattr(costs, unit), dtype=np.float64)
    else:
        numbers = np.array(costs, dtype=np.float64)
    if numbers.ndim == 1:
        return numbers[:, None] * np.arange(n_tasks + 1)
    if numbers.ndim != 2 or numbers.shape[1] != n_tasks + 1:
        raise BudgetError(
            f"the cost table has shape {numbers.shape}; expected (stages, {n_tasks + 1}), for 0..{n_tasks} copies of a "
            "stage"
        )
    if numbers[:, 0].any():
        raise BudgetError(
            f"the first column of the cost table, for no copy of the stage, is {numbers[:, 0].tolist()}; expected zeros"
        )
    return numbers


def _heads(head_costs: HeadCosts | None, tasks: Sequence[str], unit: str) -> float:
    if head_costs is None:
        return 0.0
    if set(head_costs) != set(tasks):
        strange = sorted(set(head_costs) ^ set(tasks))
        raise BudgetError(
            f"head_costs has other tasks, these differ: {', '.join(strange)}; expected {', '.join(tasks)}"
        )
    total = math.fsum(_head_cost(head_costs[task], task, unit) for task in tasks)
    if not math.isfinite(total) or total < 0:
        raise BudgetError(f"the sum of head_costs is {total}; expected finite numbers, not negative")
    return total


def _head_cost(cost: float | StageCost, task: str, unit: str) -> float:
    if not isinstance(cost, StageCost):
        return float(cost)
    if unit == "latency":
        raise BudgetError(f"the head of {task!r} has no known latency; expected milliseconds")
    return float(getattr(cost, unit))


def uncounted_operators(costs: Costs, head_costs: HeadCosts | None) -> tuple[str, ...]:
    """Operators whose multiply-adds the costs of stages and heads count as nothing.

    Args:
        costs: as `search` takes them; plain numbers name no operators.
        head_costs: as `search` takes them.

    Returns:
        Their names, sorted.
    """
    heads = (head_costs or {}).values()
    counted = [*(costs if isinstance(costs, StageCosts) else ()), *(c for c in heads if isinstance(c, StageCost))]
    return tuple(sorted({operator for cost in counted for operator in cost.uncounted}))


def stage_shares(costs: Costs, by: str = "params", unit: str = "params") -> list[float]:
    """Stage weights in proportion to what a stage costs, scaled to a mean of 1.

    Args:
        costs: StageCosts, one number per stage, or a table `costs[stage][width]`, of which one copy counts.
        by: `"params"` or `"flops"`.
        unit: what plain numbers and tables are in.

    Returns:
        D weights.

    Raises:
        BudgetError: another word, or plain numbers that are in another unit.
    """
    costs, _ = stages_and_heads(costs, None)
    if by not in ("params", "flops"):
        raise BudgetError(f"stage_weights is {by!r}; expected numbers, 'params' or 'flops'")
    if not isinstance(costs, StageCosts) and by != unit:
        raise BudgetError(f"stage_weights is {by!r}, and costs are plain numbers of {unit}; expected StageCosts")
    single = np.array(getattr(costs, by), np.float64) if isinstance(costs, StageCosts) else np.array(costs, np.float64)
    single = single if single.ndim == 1 else single[:, 1]
    if not (np.isfinite(single).all() and (single >= 0).all() and single.sum() > 0):
        raise BudgetError(f"costs is {single.tolist()}; expected finite numbers, not negative and not all 0")
    return [float(share) for share in single / single.mean()]


def tree_size(
    tree: Tree,
    costs: CostsByUnit,
    *,
    head_costs: HeadCostsByUnit | None = None,
    unit: str = "params",
    stitch_sizes: StitchSizes | None = None,
) -> float:
    """Size of a tree: the sum over stages of the cost of its nodes, plus heads and stitches where they are given.

    Args:
        tree: any tree.
        costs: StageCosts, one number per stage, or a table `costs[stage][width]` for widths 0..N.
        head_costs: `{task: number or StageCost}`; None = heads are not counted.
        unit: what to count; plain numbers and tables are taken to be in it.
        stitch_sizes: size of one stitch at each location, or these by unit; None = stitches are not counted.

    Returns:
        The size in `unit`.

    Raises:
        BudgetError: costs that do not fit the tree.
        TreeError: a task shares a stage that it does not pass, as the costs say.
    """
    early = known_depths(in_unit(costs, unit), tree.tasks)
    Tree(tree.tasks, tree.partitions, early)  # refuses a tree in which a task shares what its network has not
    model = size_model(costs, tree.tasks, unit, head_costs, stitch_sizes, {**early, **tree.depths})
    if len(model.table) != tree.depth:
        raise BudgetError(f"the tree has {tree.depth} stages; expected {len(model.table)}, as the costs have")
    return model.of_widths(tree.widths)
