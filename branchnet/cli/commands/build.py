"""`branchnet build`: from an architecture to a branched network with its single-task networks' weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, DryRun, OptionalConfig, Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from branchnet.builder import BranchedNetwork, GroupedNetworks
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.specification import Architecture, GroupedArchitecture, SharingArchitecture

Spec = Annotated[
    Path, Parameter(help="What `branchnet search` or `branchnet group` wrote; with --add, a saved network.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class BuildOptions:
    """The options of `branchnet build`.

    Attributes:
        add: A task of the config that the saved network does not have yet.
        beside: The task whose nodes the new one shares.
        until: The last location that they share.
        out: Folder for architecture.yaml and weights.safetensors.
        seed: Decides the random weights where there is no config.
    """

    config: OptionalConfig = None
    add: str | None = None
    beside: str | None = None
    until: str | None = None
    out: Path = Path("branched")
    seed: int = 0
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def build(architecture: Spec, *, options: BuildOptions = BuildOptions()) -> None:
    """Build the branched network of ARCHITECTURE; each node starts with the weights of one of its tasks' networks.

    Where ARCHITECTURE has groups of tasks that overlap, a network of each is built, with all of its tasks.

    Without a config the networks come from the named constructors, with random weights: enough to try and to time.

    With --add, ARCHITECTURE is the folder of a network that is deployed: one more task gets a branch of its own in it,
    and all others' outputs stay bit-exact. `branchnet distill --only TASK` then trains that branch.

    Example: `branchnet build architecture.yaml --config branchnet-demo/run.yaml --out branched`
    """
    from branchnet.builder import BranchedNetwork
    from branchnet.cli.loading import read_networks, read_sharing, read_spec, read_specification
    from branchnet.cli.printing import print_json, print_plan, print_text, say
    from branchnet.deploy import save
    from branchnet.pipeline.workspace import checked_folder
    from branchnet.reporting.units import si
    from branchnet.specification import Architecture

    _check_addition(options)
    out = checked_folder(options.out)
    if options.add is None and (sharing := read_sharing(architecture)) is not None:
        _build_sharing(sharing, out, options)
        return
    spec = read_specification(architecture) if options.add is None else read_spec(architecture)
    networks = read_networks(options.config, spec.tasks if options.add is None else (options.add,))
    grown = None if options.add is None else _grown(architecture, networks[options.add], options)
    if options.dry_run:
        writes = [out / "architecture.yaml", out / "weights.safetensors"]
        print_plan(_plan(spec, networks), writes, as_json=options.as_json)
        return
    branched = grown or _built(spec, networks, options)
    if isinstance(branched, BranchedNetwork) and isinstance(spec, Architecture):
        search = spec.search if grown is None else None
        save(
            branched,
            out,
            architecture=Architecture.from_network(branched, search=search, description=spec.description),
        )
    else:
        save(branched, out)
    count = sum(parameter.numel() for parameter in branched.parameters())
    each = [branched] if isinstance(branched, BranchedNetwork) else branched.branched_networks
    if options.as_json:
        donors = [{n.id: {"tasks": list(n.tasks), "donor": n.donor} for n in one.members()} for one in each]
        print_json({"params": count, **({"nodes": donors[0]} if len(each) == 1 else {"networks": donors})})
    else:
        print_text(*(one.tree for one in each), f"{si(count)} parameters; weights from: {_donors(each)}")
    say(f"wrote {out}", quiet=options.quiet)
    if options.config is None:
        say("the weights are random: pass --config to take those of trained networks", quiet=options.quiet)


def _build_sharing(spec: SharingArchitecture, out: Path, options: BuildOptions) -> None:
    """Build and save the network of tasks that are computed one at a time."""
    import torch

    from branchnet.cli.loading import read_networks, read_source
    from branchnet.cli.printing import print_json, print_plan, print_text, say
    from branchnet.deploy import save
    from branchnet.pipeline.plans.dry_run import Plan, memory_of
    from branchnet.reporting.units import si

    networks = read_networks(options.config, spec.architecture.tasks)
    if options.dry_run:
        plan = Plan("build").step("copy the donors' weights", memory=2 * memory_of(networks))
        print_plan(plan, [out / "architecture.yaml", out / "weights.safetensors"], as_json=options.as_json)
        return
    torch.manual_seed(options.seed)
    described = options.config is None or spec.architecture.input is not None
    example = None if described or options.config is None else read_source(options.config).example
    network = spec.build(networks, example=example).eval()
    save(network, out)
    count = sum(parameter.numel() for parameter in network.parameters())
    if options.as_json:
        nodes = [[{"tasks": list(node.tasks), "donor": node.donor} for node in stage.nodes] for stage in spec.sharing]
        print_json({"params": count, "sharing": nodes})
    else:
        print_text(network.sharing, f"{si(count)} parameters; each input is computed for one task")
    say(f"wrote {out}", quiet=options.quiet)
    if options.config is None:
        say("the weights are random: pass --config to take those of trained networks", quiet=options.quiet)


def _check_addition(options: BuildOptions) -> None:
    """Raise DataError where a task is to be added and something is missing, or the other way round."""
    from branchnet.errors import DataError

    if options.add is None and (options.beside, options.until) != (None, None):
        raise DataError("--beside and --until say where --add TASK attaches a task; there is no --add")
    needed = {"--config": options.config, "--beside": options.beside, "--until": options.until}
    if options.add is not None and (missing := [option for option, value in needed.items() if value is None]):
        raise DataError(f"--add {options.add} needs {', '.join(missing)}, too")


def _grown(folder: Path, network: nn.Module, options: BuildOptions) -> BranchedNetwork:
    """The saved network with one more task."""
    from branchnet.cli.saved_networks import read_branched

    saved = read_branched(folder, options.config)
    return saved.add_task(str(options.add), network, beside=str(options.beside), until=options.until).eval()


def _built(
    spec: Architecture | GroupedArchitecture, networks: dict[str, nn.Module], options: BuildOptions
) -> BranchedNetwork | GroupedNetworks:
    """The network of the specification, with the config's weights or random ones."""
    import torch

    from branchnet.cli.saved_networks import built

    torch.manual_seed(options.seed)
    return built(spec, networks, options.config)


def _plan(spec: Architecture | GroupedArchitecture, networks: dict[str, nn.Module]) -> Plan:
    from branchnet.pipeline.plans.dry_run import Plan, memory_of
    from branchnet.specification import Architecture

    plan = Plan("build").step(f"read {len(networks)} networks", memory=memory_of(networks))
    each = [spec] if isinstance(spec, Architecture) else [group.architecture for group in spec.groups]
    size = sum(4 * _parameters(one) for one in each if one.stage_costs is not None)
    return plan.step("copy the donors' weights", memory=memory_of(networks) + size)


def _parameters(spec: Architecture) -> int:
    from branchnet.clustering import tree_size

    assert spec.stage_costs is not None
    return int(tree_size(spec.tree, spec.stage_costs, head_costs=spec.head_costs or None, unit="params"))


def _donors(networks: Sequence[BranchedNetwork]) -> str:
    shared = {node.donor for network in networks for node in network.members() if len(node.tasks) > 1}
    return ", ".join(sorted(shared)) + " (shared nodes)" if shared else "each task's own network"
