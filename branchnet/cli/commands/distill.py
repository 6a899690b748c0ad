"""`branchnet distill`: train a branched network to give its single-task networks' outputs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Quiet

if TYPE_CHECKING:
    from branchnet.builder import BranchedNetwork

Folder = Annotated[Path, Parameter(help="What `branchnet build` wrote.")]


def distill(
    branched: Folder,
    config: Config,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    only: str | None = None,
    out: Path = Path("distilled"),
    seed: int | None = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train the network in BRANCHED on the images of CONFIG, without labels; print each task before and after.

    Tasks are judged on held-out images, by how well they agree with their single-task networks. Interrupted, the same
    command goes on where it stopped.

    Example: `branchnet distill branched branchnet-demo/run.yaml --out distilled`

    Parameters
    ----------
    steps
        Batches; 0 only estimates BatchNorm statistics anew; by default as the config says.
    batch_size
        Images in a batch; by default as the config says.
    learning_rate
        Peak rate; by default as the config says.
    only
        Train what these tasks alone use, with commas between; the others' outputs stay the same to the bit.
    out
        Folder for the trained network.
    seed
        Decides the split of the images and the order of batches; by default as the config says.
    """
    import branchnet
    from branchnet.builder import SeparateNetworks
    from branchnet.cli.loading import changed, read_branched, read_source, read_spec
    from branchnet.cli.printing import print_json, print_tables, say
    from branchnet.errors import SpecError
    from branchnet.pipeline.dry_run import Plan, plan_distillation
    from branchnet.pipeline.problem import divide, donor_outputs, metrics_of
    from branchnet.pipeline.workspace import checked_folder
    from branchnet.reporting import ComparedNetwork, Comparison
    from branchnet.training import reestimate_batchnorm
    from branchnet.utils.progress import silence

    checked_folder(out)
    network = read_branched(branched, config, device=device)
    given = read_source(config, device=device)
    if given.config is None or given.images is None:
        raise SpecError(f"{config} holds no images (a config as `branchnet run` takes it would be right)")
    if missing := [task for task in network.tasks if task not in given.networks]:
        raise SpecError(f"{config}: networks: {', '.join(missing)} is missing; {branched} has it")
    before = network.frozen
    if only is not None:
        _freeze_others(network, [task.strip() for task in only.split(",")])
    settings = changed(given.config, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    if dry_run:
        stages = [cost.activation_bytes * width for cost, width in zip(network.costs, network.tree.widths, strict=True)]
        heads = [cost.activation_bytes for cost in network.head_costs.values()]
        plan = plan_distillation(
            Plan("distill"),
            f"train {settings.steps} batches of {settings.batch_size}",
            [network],
            given.example,
            steps=settings.steps,
            batch_size=settings.batch_size,
            activations=sum(stages) + sum(heads),
        )
        plan.show(as_json=as_json, writes=[out / "architecture.yaml", out / "weights.safetensors"])
        return
    networks = {task: given.networks[task] for task in network.tasks}
    train, test = divide(given.images, settings)
    targets = donor_outputs(networks, test, settings.batch_size)
    metrics = {task: metric for task, metric in metrics_of(settings)[0].items() if task in networks}

    def judged(name: str, judged_network: branchnet.BranchedNetwork | SeparateNetworks) -> ComparedNetwork:
        found = branchnet.evaluate(judged_network, test, targets, metrics, batch_size=settings.batch_size)
        return ComparedNetwork(name, found)

    compared = [judged("separate", SeparateNetworks(networks).eval()), judged("before", network)]
    if settings.steps:
        with silence() if quiet else nullcontext():
            branchnet.distill(
                network,
                networks,
                train,
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                checkpoint=out / ".distill.unfinished",
            )
    else:
        reestimate_batchnorm(network, train)
    network.unfreeze(*(network.frozen - before))  # `--only` holds for this run; what is saved can be trained on
    network.eval()
    compared.append(judged("distilled", network))
    spec = read_spec(branched)
    described = branchnet.Architecture.from_network(network, search=spec.search, description=spec.description)
    branchnet.save(network.cpu(), out, architecture=described)
    comparison = Comparison(
        tuple(compared),
        {task: metric.name for task, metric in metrics.items()},
        {task: not metric.larger_is_better for task, metric in metrics.items()},
    )
    if as_json:
        print_json({one.name: {"metrics": dict(one.metrics), "delta": comparison.delta(one)} for one in compared})
    else:
        print_tables([comparison.task_table()])
    say(f"wrote {out}", quiet=quiet)


def _freeze_others(network: BranchedNetwork, wanted: list[str]) -> None:
    """Freeze all that a task which is not wanted depends on.

    Raises:
        DataError: a task that the network does not have.
    """
    from branchnet.errors import DataError

    if unknown := [task for task in wanted if task not in network.tasks]:
        raise DataError(f"--only {unknown[0]} is no task (one of {', '.join(network.tasks)} would be right)")
    network.freeze(*(task for task in network.tasks if task not in wanted))
