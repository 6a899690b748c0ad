"""`branchnet build`: from an architecture to a branched network with its single-task networks' weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, DryRun, OptionalConfig, Quiet, Seed

if TYPE_CHECKING:
    from torch import nn

    from branchnet.builder import BranchedNetwork
    from branchnet.specification import Architecture

Spec = Annotated[
    Path, Parameter(help="What `branchnet search` or `branchnet group` wrote; with --add, a saved network.")
]


def build(
    architecture: Spec,
    *,
    config: OptionalConfig = None,
    add: str | None = None,
    beside: str | None = None,
    until: str | None = None,
    out: Path = Path("branched"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Build the branched network of ARCHITECTURE; each node starts with the weights of one of its tasks' networks.

    Without a config the networks come from the named constructors, with random weights: enough to try and to time.

    With --add, ARCHITECTURE is the folder of a network that is deployed: one more task gets a branch of its own in it,
    and all others' outputs stay the same to the bit. `branchnet distill --only TASK` then trains that branch.

    Example: `branchnet build architecture.yaml --config branchnet-demo/run.yaml --out branched`

    Parameters
    ----------
    add
        A task of the config that the saved network does not have yet.
    beside
        The task whose nodes the new one shares.
    until
        The last location that they share.
    out
        Folder for architecture.yaml and weights.safetensors.
    seed
        Decides the random weights where there is no config.
    """
    import torch

    import branchnet
    from branchnet.cli.loading import read_networks, read_source, read_spec
    from branchnet.cli.printing import print_json, print_text, say
    from branchnet.pipeline.dry_run import Plan, memory_of
    from branchnet.pipeline.workspace import checked_folder
    from branchnet.reporting.units import si

    _check_addition(add, beside, until, config)
    spec = read_spec(architecture)
    checked_folder(out)
    networks = read_networks(config, spec.tasks if add is None else (add,))
    grown = None if add is None else _grown(architecture, config, networks[add], (add, str(beside), str(until)))
    if dry_run:
        plan = Plan("build").step(f"read {len(networks)} networks", memory=memory_of(networks))
        size = None if spec.stage_costs is None else 4 * _parameters(spec)
        plan = plan.step("copy the donors' weights", memory=memory_of(networks) + (size or 0))
        plan.show(as_json=as_json, writes=[out / "architecture.yaml", out / "weights.safetensors"])
        return
    if grown is None:
        example = read_source(config).example if config is not None and spec.input is None else None
        torch.manual_seed(seed)
        branched = spec.build(networks, example=example).eval()
    else:
        branched = grown
    search = spec.search if add is None else None
    described = branchnet.Architecture.from_network(branched, search=search, description=spec.description)
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


def _check_addition(add: str | None, beside: str | None, until: str | None, config: Path | None) -> None:
    """Raise DataError where a task is to be added and something is missing, or the other way round."""
    from branchnet.errors import DataError

    if add is None and (beside, until) != (None, None):
        raise DataError("--beside and --until say where --add TASK attaches a task; there is no --add")
    needed = {"--config": config, "--beside": beside, "--until": until}
    if add is not None and (missing := [option for option, value in needed.items() if value is None]):
        raise DataError(f"--add {add} needs {', '.join(missing)}, too")


def _grown(folder: Path, config: Path | None, network: nn.Module, place: tuple[str, str, str]) -> BranchedNetwork:
    """The saved network with one more task, `place` = (its name, beside which task, until which location)."""
    from branchnet.cli.loading import read_branched

    name, beside, until = place
    return read_branched(folder, config).add_task(name, network, beside=beside, until=until).eval()


def _parameters(spec: Architecture) -> int:
    from branchnet.clustering import tree_size

    assert spec.stage_costs is not None
    return int(tree_size(spec.tree, spec.stage_costs, head_costs=spec.head_costs or None, unit="params"))


def _donors(branched: BranchedNetwork) -> str:
    shared = {node.donor for node in branched.members() if len(node.tasks) > 1}
    return ", ".join(sorted(shared)) + " (shared nodes)" if shared else "each task's own network"
