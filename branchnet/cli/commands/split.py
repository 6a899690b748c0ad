"""`branchnet split`: where networks can be cut, and what the stages cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Flag, Quiet

if TYPE_CHECKING:
    from branchnet.reporting.tables import Table
    from branchnet.stages import StagedNetwork

Source = Annotated[Path, Parameter(help="Config with networks and images, or an architecture with named constructors.")]


def split(
    source: Source,
    *,
    locations: str | None = None,
    depth: Literal["common", "auto"] = "common",
    candidates: Flag = False,
    out: Path = Path("split.yaml"),
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Cut the networks of SOURCE into stages at the same places; print what the stages cost.

    Writes the separate networks as an architecture: tasks, locations, costs. `branchnet affinity` and `branchnet
    search` read it.

    Example: `branchnet split branchnet-demo/run.yaml --locations 4 --out split.yaml`

    Parameters
    ----------
    locations
        How many, or their names with commas between; by default a few meaningful ones.
    depth
        `auto`: networks may leave the trunk early where the others have more in common.
    candidates
        Only list every place where the first network can be cut.
    out
        The architecture of the separate networks, YAML.
    """
    from branchnet.cli.loading import read_source
    from branchnet.cli.printing import print_json, print_plan, print_tables, print_text, say
    from branchnet.clustering import Tree
    from branchnet.clustering.budgets.tree_sizes import uncounted_operators
    from branchnet.pipeline.plans.dry_run import Plan, memory_of
    from branchnet.reporting.costing import uncounted_note
    from branchnet.specification import Architecture
    from branchnet.stages import candidate_locations, split_all

    given = read_source(source, device=device)
    if dry_run:
        plan = Plan("split").step(f"trace {len(given.networks)} networks", memory=memory_of(given.networks))
        print_plan(plan, [] if candidates else [out], as_json=as_json)
        return
    if candidates:
        places = candidate_locations(next(iter(given.networks.values())), given.example)
        rows = [{"location": place.name, "cut": [list(shape) for shape in place.shapes]} for place in places]
        print_json(rows) if as_json else print_tables([_candidate_table(places)])
        return
    staged = split_all(given.networks, given.example, locations=parse_locations(locations), depth=depth)
    first = next(iter(staged.values()))
    tree = Tree.separate(tuple(staged), len(first.locations), first.costs.depths)
    found = Architecture.from_tree(tree, networks=staged, description="Separate networks: where they can be shared.")
    found.save(out)
    print_json(found.to_dict()) if as_json else print_tables([_stage_table(staged)])
    difference = first.first_difference
    if difference is not None and difference.limits and not as_json:
        print_text(difference)
    uncounted = uncounted_operators(first.costs, {task: network.head_cost for task, network in staged.items()})
    if uncounted and not as_json:
        print_text(uncounted_note(uncounted))
    say(f"wrote {out}", quiet=quiet)


def parse_locations(text: str | None) -> int | list[str] | None:
    """A number of locations, or names with commas between."""
    if text is None:
        return None
    return int(text) if text.strip().isdecimal() else [name.strip() for name in text.split(",")]


def _stage_table(staged: dict[str, StagedNetwork]) -> Table:
    from branchnet.reporting.tables import Column, Table
    from branchnet.reporting.units import binary, si

    first = next(iter(staged.values()))
    costs = [*first.costs, *((network.head_cost, task) for task, network in staged.items())]
    rows = []
    for cost in costs:
        one, name = cost if isinstance(cost, tuple) else (cost, cost.name)
        label = f"head of {name}" if isinstance(cost, tuple) else name
        rows.append((label, one.params, one.flops, one.activation_bytes, one.cut_bytes))
    columns = (
        Column("stage, by the location that ends it"),
        Column("parameters", si),
        Column("FLOPs", si),
        Column("activations", binary, "bytes"),
        Column("cut", binary, "bytes"),
    )
    return Table("Cost of one copy; one multiply-add counts as one FLOP", columns, tuple(rows))


def _candidate_table(places: list[Any]) -> Table:
    from branchnet.reporting.tables import Column, Table

    rows = tuple((place.name, " ".join(map(str, place.shapes))) for place in places)
    return Table("Places where the network can be cut", (Column("location"), Column("tensors of the cut")), rows)
