"""What `search`, `group` and `report` have in common: affinities together with the costs of a specification."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from branchnet.errors import BranchnetError, BudgetError, DataError, SpecError

if TYPE_CHECKING:
    from branchnet.affinity import Affinity, PairMeasurements
    from branchnet.clustering import Budget, SearchResult
    from branchnet.clustering.budgets.tree_sizes import Costs, CostsByUnit, HeadCosts
    from branchnet.clustering.search_result import Resource
    from branchnet.clustering.stitching.stitch_sizes import StitchSizes
    from branchnet.inference import LatencyTable
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting import FrontPlot
    from branchnet.specification import Architecture
    from branchnet.stages.costs import StageCost, StageCosts

REPLICATES = 50
RANDOM_TREES = 100
COMPARED_PER_SECOND = 5e8


def check_fit(found: Affinity, spec: Architecture, affinity: Path, split: Path) -> StageCosts:
    """The costs of the specification's stages.

    Args:
        found: the affinities.
        spec: the specification.
        affinity: what an error calls the affinities' file.
        split: what it calls the specification's.

    Returns:
        The costs.

    Raises:
        SpecError: no costs, or tasks or locations that are not those of the affinity.
    """
    for what in ("tasks", "locations"):
        mine, theirs = tuple(getattr(spec, what)), tuple(getattr(found, what))
        if mine != theirs:
            raise SpecError(f"{split}: {what} are {', '.join(mine)}; those of {affinity} are {', '.join(theirs)}")
    if spec.stage_costs is None:
        raise SpecError(f"{split} says nothing of costs; expected a file that `branchnet split` wrote")
    return spec.stage_costs


def costs_for(
    unit: str, found: Affinity, spec: Architecture, latency: Path | None, affinity: Path, split: Path
) -> tuple[Costs, HeadCosts | None]:
    """Costs of stages and heads in the unit of a budget: the specification's, or measured milliseconds.

    Args:
        unit: `"params"`, `"flops"` or `"latency"`.
        found: the affinities.
        spec: the specification.
        latency: the file of measured stages, or None.
        affinity: what an error calls the affinities' file.
        split: what it calls the specification's.

    Returns:
        Costs of the stages, and of the heads where they are known.

    Raises:
        SpecError: what `check_fit` refuses, or a latency table of other tasks or locations.
        BudgetError: milliseconds without a latency table.
    """
    costs = check_fit(found, spec, affinity, split)
    if unit != "latency":
        return costs, spec.head_costs or None
    if latency is None:
        raise BudgetError("a budget in ms needs measured stages: --latency FILE, from `branchnet bench --stages`")
    table = read_latency(latency)
    if (table.tasks, table.locations) != (tuple(spec.tasks), tuple(spec.locations)):
        raise SpecError(f"{latency} measures other tasks or locations than those of {split}")
    return table.costs, table.head_costs


def searched_with(found: Affinity, objective: str) -> Affinity:
    """An affinity as an objective takes it: `medoid` and `stitch` know directions, the others their mean."""
    from branchnet.clustering.stitching.stitch_losses import STITCH

    return found if objective in ("medoid", STITCH) else found.symmetric()


def stitch_sizes_for(found: Affinity, spec: Architecture, unit: str, latency: Path | None = None) -> StitchSizes | None:
    """The size of one stitch at each location, which trees found by stitching losses will have.

    Args:
        found: the affinities.
        spec: the specification; its networks are made again to count.
        unit: of the budget.
        latency: the file of measured stages, or None.

    Returns:
        D sizes by unit; None with other affinities, for milliseconds that were not measured, and where the
        specification does not say how all networks are made.
    """
    if not found.measure.startswith("stitch"):
        return None
    if unit == "latency":
        measured = None if latency is None else read_latency(latency).stitch_sizes
        return None if measured is None else {"latency": measured}
    from branchnet.specification.realisation import interface_of, make_all
    from branchnet.stages import split_all
    from branchnet.stages.staged import deepest
    from branchnet.stitching import stitch_costs

    known = spec.input is not None and all(constructor is not None for constructor in spec.constructors.values())
    if not known:
        return None
    networks, example = make_all(spec, {}), interface_of(spec).random()
    depth: Literal["auto", "common"] = "auto" if spec.tree.depths else "common"
    staged = split_all(networks, example, locations=list(spec.locations), depth=depth)
    return stitch_costs(deepest(staged))


def read_latency(path: Path) -> LatencyTable:
    """Read what `branchnet bench --stages` wrote.

    Args:
        path: the JSON file.

    Returns:
        The table.

    Raises:
        DataError: no such file, or another one.
    """
    from branchnet.inference import LatencyTable
    from branchnet.pipeline.workspace import load_json

    try:
        return LatencyTable.from_dict(load_json(path))
    except (BranchnetError, OSError) as error:
        expected = "expected a file that `branchnet bench --stages` wrote"
        raise DataError(f"{path} is not a latency table ({expected}): {error}") from error


def with_networks_of(spec: Architecture, found: Architecture) -> Architecture:
    """`found` with what `spec` says of its tasks' networks: how they are made, and what they take."""
    known = spec.to_dict()
    parts = {"input": known["input"]} if "input" in known else {}
    parts["networks"] = {task: made for task, made in known.get("networks", {}).items() if task in found.tasks}
    versions = known.get("versions", {}) | found.to_dict().get("versions", {})
    return type(found).create(**(found.to_dict() | parts | {"versions": versions}))


def replicates_of(found: Affinity) -> list[Affinity]:
    """The first bootstrap replicates of an affinity; none where it holds none."""
    samples = () if found.samples is None else found.samples[:REPLICATES]
    return [replace(found, values=values, samples=None, standard_errors=None) for values in samples]


def plan_search(
    found: Affinity | PairMeasurements,
    costs: CostsByUnit,
    budget: Budget,
    *,
    method: str,
    objective: str,
    shared_stages: int,
) -> Plan:
    """The plan of a search: how many trees there are, and what the method that fits compares and holds.

    Args:
        found: the affinities.
        costs: of the stages.
        budget: the budget.
        method: as `search` takes it, and so are the others.
        objective: how trees are judged.
        shared_stages: so many stages are shared by all tasks.

    Returns:
        The plan.
    """
    from branchnet.clustering import count_trees
    from branchnet.clustering.exact.subset_search import how_under_subsets, task_limits
    from branchnet.clustering.search_problem import choose_method, make_problem
    from branchnet.pipeline.plans.dry_run import Plan

    trees = count_trees(len(found.tasks), len(found.locations))
    plan = Plan("search").step(f"{trees:.3g} trees of {len(found.tasks)} tasks and {len(found.locations)} stages")
    if any(one.tasks for one in budget.each):
        others = (objective, None, shared_stages)
        problem, _ = task_limits(budget.each, budget.unit, found, costs, None, *others)
        return plan.step(f"{how_under_subsets(problem, method)}; --time-limit ends it earlier")
    problem = make_problem(found, costs, budget.unit, None, objective, None, shared_stages, also=budget.also)
    chosen, why = choose_method(problem, method)
    if chosen != "exact":
        end = "after a minute" if chosen == "milp" else "when no move helps"
        return plan.step(f"{chosen} search ({why}); ends at --time-limit, or {end}")
    compared, held = problem.work()
    return plan.step(f"exact search ({why})", seconds=compared / COMPARED_PER_SECOND, memory=held)


def objective_of(spec: Architecture) -> str:
    """The objective that the tree of a specification was found with, as far as it is recorded."""
    from branchnet.clustering.objectives import DEFAULT_OBJECTIVE

    return (spec.search and spec.search.objective) or DEFAULT_OBJECTIVE


def chosen_of(spec: Architecture, found: Affinity) -> SearchResult:
    """The tree of a specification as the search result that it came from, as far as it is recorded.

    Args:
        spec: the specification of a network.
        found: the affinities that it was found from.

    Returns:
        The search result.
    """
    from branchnet.clustering import Budget, SearchResult, clustering_cost, tree_size
    from branchnet.clustering.budgets.tree_sizes import uncounted_operators
    from branchnet.clustering.search_problem import make_problem

    recorded = spec.search
    objective = objective_of(spec)
    budget = Budget.parse(recorded.budget) if recorded and recorded.budget else None
    unit = budget.unit if budget else "params"
    costs, heads = spec.stage_costs, spec.head_costs or None
    assert costs is not None
    stitches = stitch_sizes_for(found, spec, unit)
    whole = [one for one in (budget.each if budget else ()) if not one.tasks]
    also = tuple(one for one in whole if one.unit != unit)
    also = () if any(one.unit == "latency" for one in also) else also
    problem = make_problem(found, costs, unit, heads, objective, stitch_sizes=stitches, also=also)
    some = _for_some(budget, spec, found, objective, stitches)
    cost = clustering_cost(spec.tree, found, objective=objective)
    bound = recorded.lower_bound if recorded and recorded.lower_bound is not None else float("-inf")
    return SearchResult(
        tree=spec.tree,
        cost=cost,
        size=tree_size(spec.tree, costs, head_costs=heads, unit=unit, stitch_sizes=stitches),
        lower_bound=bound,
        proven=bool(recorded and recorded.proven and bound >= cost - 2 * problem.losses.tie),
        method=(recorded and recorded.method) or "given",
        why="",
        objective=objective,
        unit=unit,
        limit=problem.sizes.limit(whole[0]) if whole and whole[0].unit == unit else float("inf"),
        also=(*(one.resource(spec.tree.widths) for one in problem.further), *some),
        uncounted=uncounted_operators(costs, heads) if unit == "flops" else (),
    )


def _for_some(
    budget: Budget | None, spec: Architecture, found: Affinity, objective: str, stitches: StitchSizes | None
) -> tuple[Resource, ...]:
    """What the tree of a specification needs for some of its tasks; milliseconds are not known to it."""
    from branchnet.clustering.exact.subset_search import task_limits

    each = [one for one in (budget.each if budget else ()) if one.tasks and one.unit != "latency"]
    if not each:
        return ()
    costs, heads = spec.stage_costs, spec.head_costs or None
    assert costs is not None
    others = (objective, None, 0, None, None, stitches)
    _, limits = task_limits(each, each[0].unit, found, costs, heads, *others)
    return tuple(one.resource(spec.tree) for one in limits)


def front_of(
    chosen: SearchResult,
    found: Affinity,
    costs: StageCosts,
    heads: Mapping[str, StageCost] | None,
    stitch_sizes: StitchSizes | None = None,
) -> FrontPlot:
    """The front around a chosen tree, with random trees of its budget.

    Args:
        chosen: the chosen tree.
        found: the affinities.
        costs: of the stages.
        heads: of the heads, or None.
        stitch_sizes: of one stitch at each location, or None.

    Returns:
        What is drawn.
    """
    from branchnet.clustering import Tree, pareto_front, tree_size
    from branchnet.reporting import front_plot_data

    tree, unit = chosen.tree, chosen.unit
    counted: dict[str, Any] = {"head_costs": heads, "stitch_sizes": stitch_sizes}
    front = pareto_front(found, costs, unit=unit, objective=chosen.objective, **counted)
    budget = chosen.budget
    return front_plot_data(
        front,
        tree_size(Tree.separate(tree.tasks, tree.depth, tree.depths), costs, head_costs=heads, unit=unit),
        chosen=chosen,
        random=random_points(
            found, costs, heads, unit=unit, objective=chosen.objective, budget=budget, stitch_sizes=stitch_sizes
        ),
        budget=chosen.limit if math.isfinite(chosen.limit) else None,
        resource={"params": "parameters", "flops": "FLOPs"}.get(unit, unit),
        objective=f"clustering cost ({chosen.objective})",
    )


def random_points(
    found: Affinity,
    costs: StageCosts,
    heads: Mapping[str, StageCost] | None,
    *,
    unit: str,
    objective: str,
    budget: Budget | None,
    stitch_sizes: StitchSizes | None = None,
) -> list[tuple[float, float]]:
    """Size and cost of trees drawn uniformly, among those within a budget if there is one, to compare a choice with.

    Args:
        found: the affinities.
        costs: of the stages.
        heads: of the heads, or None.
        unit: in which sizes are counted.
        objective: how trees are judged.
        budget: the budget, or None; stitches may exceed it. What it says of other units or of some of the tasks is left
            out, as it is in the front.
        stitch_sizes: of one stitch at each location, or None.

    Returns:
        (size, cost) of each tree.
    """
    from branchnet.clustering import clustering_cost, random_tree, tree_size

    depths = found.depths
    draw = partial(random_tree, found.tasks, len(found.locations), seed=random.Random(0), depths=depths or None)
    if whole := [one for one in (budget.each if budget else ()) if one.unit == unit and not one.tasks]:
        draw = partial(draw, costs=costs, budget=whole, head_costs=heads)
    drawn = [draw() for _ in range(RANDOM_TREES)]
    return [
        (
            tree_size(tree, costs, head_costs=heads, unit=unit, stitch_sizes=stitch_sizes),
            clustering_cost(tree, found, objective=objective),
        )
        for tree in drawn
    ]
