"""`branchnet search`: the best tree within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, DryRun, Flag, Quiet, Seed

if TYPE_CHECKING:
    from branchnet.affinity import Affinity, PairMeasurements
    from branchnet.clustering import Budget, SearchResult
    from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit
    from branchnet.clustering.stitching.stitch_sizes import StitchSizes
    from branchnet.reporting.tables import Table
    from branchnet.specification import Architecture

Affinities = Annotated[
    Path, Parameter(help="What `branchnet affinity` wrote; or a CSV file of measured pairs, see PairMeasurements.read.")
]
Split = Annotated[Path, Parameter(help="What `branchnet split` wrote: the costs of stages and heads.")]


@Parameter(name="*")
@dataclass(frozen=True)
class SearchOptions:
    """The options of `branchnet search`.

    Attributes:
        budget: `60% params`, `25e6 params`, `4 GMACs`, `50% flops`, `4 ms`; or `4 ms for depth+edges`, some tasks.
        objective: How trees are judged: medoid, mean-pair, mean-max and others, see `branchnet.clustering.objectives`;
            medoid and stitch take the direction of stitching losses into account.
        method: Exact with proof, local search, the published beam search, or an integer programme (milp, for the
            objective stitch); auto takes exact where it fits.
        shared_stages: So many stages are shared by all tasks, come what may.
        latency: What `branchnet bench --stages` wrote; budgets such as `4 ms` need it.
        time_limit: Seconds, after which the best tree so far is taken.
        one_task_per_input: Each input is computed for one task: stages are shared without being nested, which saves
            memory alone; `branchnet build`, `distill` and `export` take what is written.
        front: Print the whole front of size against cost, and write nothing; budgets for some of the tasks hold in it.
        out: The architecture, YAML.
    """

    budget: str = "60% params"
    objective: str = "medoid"
    method: Literal["auto", "exact", "local", "beam", "milp"] = "auto"
    shared_stages: int = 0
    latency: Path | None = None
    time_limit: float | None = None
    one_task_per_input: Flag = False
    front: Flag = False
    out: Path = Path("architecture.yaml")
    seed: Seed = 0
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def search(affinity: Affinities, split: Split, *, options: SearchOptions = SearchOptions()) -> None:
    """Find the tree of least cost that fits the budget; print it, and how sure it is that none is better.

    With stitching losses (`affinity --measure stitch`), stitches are counted where SPLIT says how networks are made.

    Example: `branchnet search affinity.npz split.yaml --budget "60% params" --out architecture.yaml`
    """
    from branchnet.cli.loading import read_affinity, read_pairs, read_spec
    from branchnet.cli.printing import print_json, print_plan, print_tables, print_text, say
    from branchnet.clustering import Budget, pareto_front
    from branchnet.clustering import search as find_tree
    from branchnet.pipeline.search_inputs import (
        costs_for,
        plan_search,
        searched_with,
        stitch_sizes_for,
        with_networks_of,
    )
    from branchnet.specification import Architecture
    from branchnet.utils.interrupt import deferred_interrupt

    spec = read_spec(split)
    pairs = read_pairs(affinity, spec) if affinity.suffix == ".csv" else None
    found = searched_with(pairs.affinity() if pairs else read_affinity(affinity), options.objective)
    judged = pairs or found
    wanted = Budget.parse(options.budget)
    every = {one.unit: costs_for(one.unit, found, spec, options.latency, affinity, split) for one in wanted.each}
    costs: CostsByUnit = {unit: stages for unit, (stages, _) in every.items()}
    heads = {unit: of_heads for unit, (_, of_heads) in every.items() if of_heads is not None} or None
    how: dict[str, Any] = {name: getattr(options, name) for name in ("objective", "method", "shared_stages")}
    if options.one_task_per_input:
        _search_sharing(judged, found, spec, costs, heads, wanted, options)
        return
    if options.dry_run:
        plan = plan_search(judged, costs, wanted, **how)
        print_plan(plan, [] if options.front else [options.out], as_json=options.as_json)
        return
    stitches = stitch_sizes_for(found, spec, wanted.unit, options.latency)
    sizes: dict[str, Any] = {"head_costs": heads, "stitch_sizes": stitches}
    how |= sizes | {"seed": options.seed}
    if options.front:
        units = [one.unit for one in wanted.each if not one.tasks] or [wanted.unit]
        some = [one for one in wanted.each if one.tasks] or None
        results = pareto_front(judged, costs, unit=units, budget=some, **how)
        print_json(list(map(as_record, results))) if options.as_json else print_tables([_front_table(results)])
        return
    with deferred_interrupt() as interrupted:
        result = find_tree(judged, costs, wanted, time_limit=options.time_limit, **how)
    chosen = Architecture.from_search(
        result,
        affinity=found,
        locations=spec.locations,
        costs=spec.stage_costs,
        head_costs=spec.head_costs,
        budget=options.budget,
        seed=options.seed,
    )
    with_networks_of(spec, chosen).save(options.out)
    if options.as_json:
        print_json(as_record(result))
    else:
        print_text(result.tree, *_sentences(result, found, costs, **sizes))
    note = " (the search was interrupted)" if interrupted() else ""
    say(f"wrote {options.out}{note}", quiet=options.quiet)


def _search_sharing(
    judged: Affinity | PairMeasurements,
    found: Affinity,
    spec: Architecture,
    costs: CostsByUnit,
    heads: HeadCostsByUnit | None,
    budget: Budget,
    options: SearchOptions,
) -> None:
    """Find and write the best sharing that need not be nested; print it."""
    from branchnet.cli.printing import print_json, print_plan, print_text, say
    from branchnet.clustering import search as find
    from branchnet.errors import BranchnetError
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.specification import SharingArchitecture
    from branchnet.utils.interrupt import deferred_interrupt

    if options.front:
        raise BranchnetError("--front with --one-task-per-input; expected one of them: fronts are of nested trees")
    if options.dry_run:
        plan = Plan("search").step(f"find the best partition of each of {len(spec.locations)} stages", memory=0)
        print_plan(plan, [options.out], as_json=options.as_json)
        return
    how: dict[str, Any] = {name: getattr(options, name) for name in ("objective", "method", "shared_stages", "seed")}
    with deferred_interrupt() as interrupted:
        result = find(judged, costs, budget, nested=False, head_costs=heads, time_limit=options.time_limit, **how)
    assert result.sharing is not None
    SharingArchitecture.from_sharing(result.sharing, spec, affinity=found).save(options.out)
    if options.as_json:
        print_json(as_record(result))
    else:
        print_text(result.sharing, *_size_and_cost(result, "sharing", costs, heads))
    note = " (the search was interrupted)" if interrupted() else ""
    say(f"wrote {options.out}{note}", quiet=options.quiet)


def as_record(result: SearchResult) -> dict[str, object]:
    """A search result as JSON values."""
    return {
        "tree" if result.sharing is None else "sharing": [
            [list(cluster) for cluster in stage] for stage in (result.sharing or result.tree).partitions
        ],
        "cost": result.cost,
        "size": result.size,
        "unit": result.unit,
        "also": [resource._asdict() for resource in result.also],
        "lower_bound": result.lower_bound,
        "proven": result.proven,
        "method": result.method,
        "why": result.why,
        "objective": result.objective,
        "uncounted": list(result.uncounted),
        "forced": [pair._asdict() for pair in result.forced],
        "first_difference": None if result.first_difference is None else str(result.first_difference),
    }


def _sentences(
    result: SearchResult,
    found: Affinity,
    costs: CostsByUnit,
    *,
    head_costs: HeadCostsByUnit | None,
    stitch_sizes: StitchSizes | None,
) -> list[str]:
    from branchnet.clustering import stability
    from branchnet.pipeline.search_inputs import replicates_of
    from branchnet.reporting.costing import uncounted_note
    from branchnet.reporting.units import percent

    lines = _size_and_cost(result, "tree", costs, head_costs)
    if stitch_sizes is not None:
        lines.append("stitches are counted, each with full rank")
    if result.forced:
        lines.append(result.forced_note())
    if result.first_difference is not None:
        lines.append(str(result.first_difference))
    if result.uncounted:
        lines.append(uncounted_note(result.uncounted))
    if replicates := replicates_of(found):
        again = stability(result, replicates, costs, head_costs=head_costs, stitch_sizes=stitch_sizes)
        lines.append(f"sure: the same tree in {percent(again.same_tree)} of {again.replicates} bootstrap replicates")
    return lines


def _size_and_cost(
    result: SearchResult, what: str, costs: CostsByUnit, head_costs: HeadCostsByUnit | None
) -> list[str]:
    from branchnet.clustering import Tree, tree_size
    from branchnet.reporting.units import percent, si

    shared = result.sharing or result.tree
    alone = Tree.separate(shared.tasks, shared.depth, result.tree.depths if result.sharing is None else None)
    units = {"params": "parameters", "flops": "FLOPs (multiply-adds)", "latency": "ms"}
    sizes = []
    for one in result.resources:
        separate = tree_size(alone, costs, head_costs=head_costs, unit=one.unit)
        share = percent(one.size / separate)
        sizes.append(f"{si(one.size)} {units[one.unit]}{one.whose}, {share} of separate networks")
    bound = f"lower bound {result.lower_bound:.6g}"
    if result.proven:
        bound = f"proven: no {what} within the budget costs less"
    return [
        f"size: {'; '.join(sizes)}",
        f"cost: {result.cost:.6g} ({result.objective}); {bound}",
        f"method: {result.method} ({result.why})",
    ]


def _front_table(results: list[SearchResult]) -> Table:
    from branchnet.reporting.tables import Column, Table
    from branchnet.reporting.units import si

    rows = tuple(
        (
            *(one.size for one in result.resources),
            result.cost,
            " ".join(map(str, result.tree.widths)),
            "yes" if result.proven else "no",
        )
        for result in results
    )
    columns = (
        *(Column(f"size ({one.unit}{one.whose})", si) for one in results[0].resources),
        Column("clustering cost", "{:.5g}".format),
        Column("clusters per stage"),
        Column("proven"),
    )
    return Table("Every trade between size and cost", columns, rows)
