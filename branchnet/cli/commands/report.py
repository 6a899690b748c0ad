"""`branchnet report`: what a branched network costs, as a table, a file, or a page with everything that is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, OptionalConfig, Quiet

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.reporting import Page, Report
    from branchnet.specification import Architecture

_CALLS = 23  # of every network and node: timed and to warm up
Folder = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote.")]


def report(
    branched: Folder,
    *,
    affinity: Path | None = None,
    config: OptionalConfig = None,
    latency: bool = True,
    out: Path = Path("report.html"),
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Report parameters, FLOPs and latency of the network in BRANCHED by stage, branch and task.

    With the affinities it was found from, the page also shows them, the Pareto front with random trees, and how sure
    the choice is.

    Example: `branchnet report distilled --affinity affinity.npz --out report.html`

    Parameters
    ----------
    affinity
        What `branchnet affinity` wrote.
    latency
        Measure latencies, too.
    out
        .html, .md, .csv or .json.
    """
    import branchnet
    from branchnet.cli.loading import (
        placed,
        placed_networks,
        read_affinity,
        read_branched,
        read_spec,
        separate_networks,
    )
    from branchnet.cli.printing import print_json, say
    from branchnet.errors import DataError
    from branchnet.pipeline.dry_run import Plan, forward_seconds, memory_of

    if out.suffix not in (".html", ".md", ".csv", ".json"):
        raise DataError(f"--out {out}: a report ends in .html, .md, .csv or .json")
    found = None if affinity is None else read_affinity(affinity).symmetric()
    network = read_branched(branched, config, device=device, dtype=dtype)
    networks = placed_networks(separate_networks(network, config) if latency else {}, device, dtype)
    example = placed(network.interface.random(), device, dtype)
    if dry_run:
        plan = Plan("report").step("count parameters and FLOPs", memory=memory_of({"": network}))
        if latency:
            calls = sum(forward_seconds(each, example) for each in (network, network, *networks.values()))
            plan = plan.step("measure latencies", seconds=_CALLS * calls, memory=memory_of({"": network, **networks}))
        plan.show(as_json=as_json, writes=[out])
        return
    made = branchnet.report(network, example, networks=networks or None, latency=latency)
    if out.suffix == ".html":
        options = {"--affinity": affinity, "--config": config, "--device": device, "--dtype": dtype, "--out": out}
        commands = _commands(branched, options, latency=latency)
        _page(made, read_spec(branched), found, commands).save(out)
    else:
        made.save(out)
    if as_json:
        print_json(made.to_dict())
    else:
        import rich

        rich.print(made.table())
    say(f"wrote {out}", quiet=quiet)


def _commands(branched: Path, options: dict[str, Any], *, latency: bool) -> list[str]:
    import shlex

    given = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    given += [] if latency else ["--no-latency"]
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
    from branchnet.pipeline.search_inputs import check_fit, chosen_of, front_of, replicates_of

    costs = check_fit(found, spec, Path("the affinity"), Path("the network"))
    chosen = chosen_of(spec, found)
    parts: dict[str, Any] = {"chosen": chosen, "front": front_of(chosen, found, costs, spec.head_costs or None)}
    replicates = replicates_of(found)
    if replicates and chosen.limit < float("inf"):
        parts["stability"] = stability(chosen, replicates, costs, head_costs=spec.head_costs or None)
    return parts
