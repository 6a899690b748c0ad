"""`branchnet distill`: train a branched network to give its single-task networks' outputs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Quiet

if TYPE_CHECKING:
    from branchnet.builder import BranchedNetwork, GroupedNetworks
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting import Comparison

Folder = Annotated[Path, Parameter(help="What `branchnet build` wrote.")]


@Parameter(name="*")
@dataclass(frozen=True)
class DistillOptions:
    """The options of `branchnet distill`.

    Attributes:
        steps: Batches; 0 only estimates BatchNorm statistics again; by default as the config says.
        batch_size: Images in a batch; by default as the config says.
        learning_rate: Peak rate; by default as the config says.
        only: Train what these tasks alone use, with commas between; the others' outputs stay bit-exact.
        out: Folder for the trained network.
        seed: Decides the split of the images and the order of batches; by default as the config says.
    """

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | Literal["auto"] | None = None
    only: str | None = None
    out: Path = Path("distilled")
    seed: int | None = None
    device: Device = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def distill(branched: Folder, config: Config, *, options: DistillOptions = DistillOptions()) -> None:
    """Train the network in BRANCHED on the images of CONFIG, without labels; print each task before and after.

    Where BRANCHED holds networks for groups of tasks, each is trained by itself with all of its tasks; where tasks are
    computed one at a time, every batch goes through each task's own path.

    Tasks are judged on held-out images, by how well they agree with their single-task networks. Interrupted, the same
    command goes on where it stopped.

    Example: `branchnet distill branched branchnet-demo/run.yaml --out distilled`
    """
    from branchnet.builder import BranchedNetwork
    from branchnet.cli.loading import changed, not_a_config, read_source, read_spec
    from branchnet.cli.printing import print_json, print_plan, print_tables, say
    from branchnet.cli.saved_networks import read_saved, read_saved_sharing
    from branchnet.deploy import save
    from branchnet.errors import DataError, SpecError
    from branchnet.pipeline.distillation_steps import distil_and_compare
    from branchnet.pipeline.workspace import checked_folder
    from branchnet.specification import Architecture
    from branchnet.training.grouped_training import check_paths
    from branchnet.utils.progress import silence

    out = checked_folder(options.out)
    sharing = read_saved_sharing(branched, config, device=options.device)
    # The paths' modules are those of the network: training them trains it.
    network = sharing.separate_paths() if sharing else read_saved(branched, config, device=options.device)
    given = read_source(config, device=options.device)
    if given.config is None or given.images is None:
        raise not_a_config(config)
    if missing := [task for task in network.tasks if task not in given.networks]:
        raise SpecError(f"{config}: networks: {', '.join(missing)} is missing; {branched} has it")
    if sharing is not None:
        check_paths(given.config.distillation)
    one = network if sharing is None and isinstance(network, BranchedNetwork) else None
    frozen = frozenset() if one is None else one.frozen
    if options.only is not None:
        if one is None:
            held = "several networks" if sharing is None else "tasks that are computed one at a time"
            raise DataError(f"--only: {branched} holds {held}, which are all trained; expected one network")
        _freeze_others(one, [task.strip() for task in options.only.split(",")])
    settings = changed(
        given.config,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    if options.dry_run:
        writes = [out / "architecture.yaml", out / "weights.safetensors"]
        print_plan(_plan(network, given.example, settings), writes, as_json=options.as_json)
        return
    networks = {task: given.networks[task] for task in network.tasks}
    unfinished = out / ".distill.unfinished"
    with silence() if options.quiet else nullcontext():
        comparison = distil_and_compare(
            network, networks, given.images, settings, kinds=settings.kinds, checkpoint=unfinished
        )
    described = None
    if one is not None:
        one.unfreeze(*(one.frozen - frozen))  # `--only` holds for this run; what is saved can be trained on
        spec = read_spec(branched)
        described = Architecture.from_network(one, search=spec.search, description=spec.description)
    save((sharing or network).cpu().eval(), out, architecture=described)
    for file in out.glob(f"{unfinished.stem}*{unfinished.suffix}"):  # one for each network
        file.unlink()
    if options.as_json:
        print_json(_as_record(comparison))
    else:
        print_tables([comparison.task_table()])
    say(f"wrote {out}", quiet=options.quiet)


def _plan(network: BranchedNetwork | GroupedNetworks, example: Any, settings: RunConfig) -> Plan:
    from branchnet.builder import BranchedNetwork
    from branchnet.pipeline.plans.dry_run import Plan, plan_distillation

    each = [network] if isinstance(network, BranchedNetwork) else network.branched_networks
    stages = [c.activation_bytes * width for n in each for c, width in zip(n.costs, n.tree.copies, strict=True)]
    heads = [cost.activation_bytes for one in each for cost in one.head_costs.values()]
    return plan_distillation(
        Plan("distill"),
        f"train {settings.steps} batches of {settings.batch_size}",
        [network],
        example,
        steps=settings.steps,
        batch_size=settings.batch_size,
        activations=sum(stages) + sum(heads),
    )


def _as_record(comparison: Comparison) -> dict[str, Any]:
    """Metrics and changes of every network as JSON values."""
    return {
        judged.name: {
            "metrics": dict(judged.metrics),
            "changes": {task: change.to_dict() for task, change in comparison.changes(judged).items()},
            "delta": comparison.delta(judged),
        }
        for judged in comparison.networks
    }


def _freeze_others(network: BranchedNetwork, wanted: list[str]) -> None:
    """Freeze all that a task which is not wanted depends on.

    Raises:
        DataError: a task that the network does not have.
    """
    from branchnet.errors import DataError

    if unknown := [task for task in wanted if task not in network.tasks]:
        raise DataError(f"--only: unknown task {unknown[0]!r}; expected one of {', '.join(network.tasks)}")
    network.freeze(*(task for task in network.tasks if task not in wanted))
