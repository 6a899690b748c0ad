"""`branchnet report`: what a branched network costs, as a table, a file, or a page with everything that is known."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, OptionalConfig, Quiet

if TYPE_CHECKING:
    from torch import nn

    from branchnet.affinity import Affinity
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting import Page, Report
    from branchnet.specification import Architecture

_CALLS = 23  # of every network and node: timed and to warm up
Folder = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ReportOptions:
    """The options of `branchnet report`.

    Attributes:
        affinity: What `branchnet affinity` wrote.
        latency: Measure latencies, too.
        out: .html, .md, .csv or .json.
    """

    affinity: Path | None = None
    config: OptionalConfig = None
    latency: bool = True
    out: Path = Path("report.html")
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def report(branched: Folder, *, options: ReportOptions = ReportOptions()) -> None:
    """Report parameters, FLOPs and latency of the network in BRANCHED by stage, branch and task.

    With the affinities it was found from, the page also shows them, the Pareto front with random trees, and how sure
    the choice is.

    Example: `branchnet report distilled --affinity affinity.npz --out report.html`
    """
    from branchnet.cli.loading import placed, placed_networks, read_affinity, read_spec, read_specification
    from branchnet.cli.printing import print_json, print_plan, say
    from branchnet.cli.saved_networks import read_branched, separate_networks
    from branchnet.errors import DataError
    from branchnet.pipeline.search_inputs import objective_of, searched_with
    from branchnet.reporting import report as report_on
    from branchnet.specification import Architecture, GroupedArchitecture

    out, device, dtype = options.out, options.device, options.dtype
    if out.suffix not in (".html", ".md", ".csv", ".json"):
        raise DataError(f"--out {out}: a report ends in .html, .md, .csv or .json")
    found = None if options.affinity is None else read_affinity(options.affinity)
    network = read_branched(branched, options.config, device=device, dtype=dtype)
    alone = separate_networks(network, options.config) if options.latency else {}
    networks = placed_networks(alone, device, dtype)
    example = placed(network.interface.random(), device, dtype)
    if options.dry_run:
        print_plan(_plan(network, networks, example, options), [out], as_json=options.as_json)
        return
    made = report_on(network, example, networks=networks or None, latency=options.latency)
    if out.suffix == ".html":
        grouped = isinstance(read_specification(branched), GroupedArchitecture)
        spec = Architecture.from_network(network) if grouped else read_spec(branched)
        judged = None if found is None else searched_with(found, objective_of(spec))
        _page(made, spec, judged, _commands(branched, options)).save(out)
    else:
        made.save(out)
    if options.as_json:
        print_json(made.to_dict())
    else:
        import rich

        rich.print(made.table())
    say(f"wrote {out}", quiet=options.quiet)


def _plan(network: nn.Module, networks: dict[str, nn.Module], example: Any, options: ReportOptions) -> Plan:
    from branchnet.pipeline.plans.dry_run import Plan, forward_seconds, memory_of

    plan = Plan("report").step("count parameters and FLOPs", memory=memory_of({"": network}))
    if not options.latency:
        return plan
    calls = sum(forward_seconds(each, example) for each in (network, network, *networks.values()))
    return plan.step("measure latencies", seconds=_CALLS * calls, memory=memory_of({"": network, **networks}))


def _commands(branched: Path, options: ReportOptions) -> list[str]:
    """The shell commands that make the report again, and show the network."""
    names = ("affinity", "config", "device", "dtype", "out")
    values = {f"--{name}": getattr(options, name) for name in names}
    given = [str(word) for name, value in values.items() if value is not None for word in (name, value)]
    given += [] if options.latency else ["--no-latency"]
    return [
        shlex.join(["branchnet", "report", str(branched), *given]),
        shlex.join(["branchnet", "show", str(branched)]),
    ]


def _page(made: Report, spec: Architecture, found: Affinity | None, commands: list[str]) -> Page:
    from branchnet.reporting import Page

    search = spec.search
    asked = {"budget": search.budget or "none", "objective": search.objective or "none"} if search else {}
    parts: dict[str, Any] = {}
    if found is not None:
        parts = _what_was_searched(spec, found)
    return Page(
        title="Branched network",
        summary=spec.description or "",
        asked=asked,
        report=made,
        affinity=found,
        commands=commands,
        **parts,
    )


def _what_was_searched(spec: Architecture, found: Affinity) -> dict[str, Any]:
    """The search's result, the front around it, random trees, and how stable the choice is."""
    from branchnet.clustering import stability
    from branchnet.pipeline.search_inputs import check_fit, chosen_of, front_of, replicates_of, stitch_sizes_for

    costs = check_fit(found, spec, Path("the affinity"), Path("the network"))
    chosen = chosen_of(spec, found)
    heads, stitches = spec.head_costs or None, stitch_sizes_for(found, spec, chosen.unit)
    parts: dict[str, Any] = {"chosen": chosen, "front": front_of(chosen, found, costs, heads, stitches)}
    replicates = replicates_of(found)
    if replicates and chosen.budget is not None:
        parts["stability"] = stability(chosen, replicates, costs, head_costs=heads, stitch_sizes=stitches)
    return parts
