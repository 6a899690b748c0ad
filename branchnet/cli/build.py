"""`branchnet build`: from an architecture to a branched network with its single-task networks' weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, DryRun, OptionalConfig, Quiet

if TYPE_CHECKING:
    from branchnet import Architecture, BranchedNetwork

Spec = Annotated[Path, Parameter(help="What `branchnet search` or `branchnet group` wrote.")]


def build(
    architecture: Spec,
    *,
    config: OptionalConfig = None,
    out: Path = Path("branched"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Build the branched network of ARCHITECTURE; each node starts with the weights of one of its tasks' networks.

    Without a config the networks come from the named constructors, with random weights: enough to try and to time.

    Example: `branchnet build architecture.yaml --config run.yaml --out branched`

    Parameters
    ----------
    out
        Folder for architecture.yaml and weights.safetensors.
    """
    import branchnet
    from branchnet.cli.given import read_networks, read_source, read_spec
    from branchnet.cli.plans import Plan, memory_of
    from branchnet.cli.printing import print_json, print_text, say
    from branchnet.cli.workspace import checked_folder
    from branchnet.reporting.units import si

    spec = read_spec(architecture)
    checked_folder(out)
    networks = read_networks(config, spec.tasks)
    if dry_run:
        plan = Plan("build").step(f"read {len(networks)} networks", memory=memory_of(networks))
        size = None if spec.stage_costs is None else 4 * _parameters(spec)
        plan = plan.step("copy the donors' weights", memory=memory_of(networks) + (size or 0))
        plan.show(as_json=as_json, writes=[out / "architecture.yaml", out / "weights.safetensors"])
        return
    example = read_source(config).example if config is not None and spec.input is None else None
    branched = spec.build(networks, example=example).eval()
    described = branchnet.Architecture.from_network(branched, search=spec.search, description=spec.description)
    branchnet.save(branched, out, architecture=described)
    count = sum(parameter.numel() for parameter in branched.parameters())
    donors = {node.id: {"tasks": list(node.tasks), "donor": node.donor} for node in branched.members()}
    if as_json:
        print_json({"params": count, "nodes": donors})
    else:
        print_text(branched.tree, f"{si(count)} parameters; weights from: {_donors(branched)}")
    say(f"wrote {out}", quiet=quiet)
    if config is None:
        say("the weights are random: pass --config to take those of trained networks", quiet=quiet)


def _parameters(spec: Architecture) -> int:
    from branchnet.clustering import tree_size

    assert spec.stage_costs is not None
    return int(tree_size(spec.tree, spec.stage_costs, head_costs=spec.head_costs or None, unit="params"))


def _donors(branched: BranchedNetwork) -> str:
    shared = {node.donor for node in branched.members() if len(node.tasks) > 1}
    return ", ".join(sorted(shared)) + " (shared nodes)" if shared else "each task's own network"
