"""`branchnet train`: train one branched network on labels."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Quiet

if TYPE_CHECKING:
    from branchnet.builder import BranchedNetwork
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.pipeline.plans.dry_run import Plan


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """The options of `branchnet train`.

    Attributes:
        branched: Architecture, or folder of a saved network; by default what the config says.
        steps: Updates of the weights; by default as the config's section `fit` says.
        batch_size: Samples in a batch; by default as that section says.
        learning_rate: Peak rate; by default as that section says.
        out: Folder for the trained network, history.csv and history.png.
        seed: Decides the order of batches; by default as the config says.
    """

    branched: Path | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | Literal["auto"] | None = None
    out: Path = Path("trained")
    seed: int | None = None
    device: Device = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def train(config: Config, *, options: TrainOptions = TrainOptions()) -> None:
    """Train one branched network on the samples with labels of CONFIG; print each task before and after.

    The network is the config's `branched`, or --branched: a saved network goes on from its weights, that of an
    architecture starts from those of the config's networks. The best state on `validation` is kept; `test`, where the
    config names it, is what the table is measured on. Interrupted, the same command goes on where it stopped.

    Example: `branchnet train branchnet-demo/run.yaml --branched branched --out trained`
    """
    from branchnet.cli.loading import changed, read_config, read_networks, read_spec
    from branchnet.cli.printing import print_json, print_plan, print_tables, print_text, say
    from branchnet.deploy import save
    from branchnet.pipeline.labelled_run.branched_training import fit_and_compare
    from branchnet.pipeline.labelled_run.label_sources import read_sources
    from branchnet.pipeline.workspace import checked_folder
    from branchnet.reporting.plots.history_plot import write_histories
    from branchnet.specification import Architecture
    from branchnet.utils.progress import silence

    out = checked_folder(options.out)
    settings = _settings(changed(read_config(config), seed=options.seed), options)
    path = _path(settings, config, options)
    network = _network(path, config, settings, options.device)
    sources = read_sources(settings, config.parent, read_networks(config, network.tasks))
    writes = [out / name for name in ("architecture.yaml", "weights.safetensors", "history.csv", "history.png")]
    if options.dry_run:
        print_plan(_plan(network, settings), writes, as_json=options.as_json)
        return
    unfinished = out / ".train.unfinished"
    with silence() if options.quiet else nullcontext():
        history, comparison = fit_and_compare(network, sources, settings, checkpoint=unfinished)
    spec = read_spec(path)
    described = Architecture.from_network(network, search=spec.search, description=spec.description)
    save(network.cpu(), out, architecture=described)
    write_histories({"labels": history}, out)
    unfinished.unlink(missing_ok=True)
    worse = dict(history.worse)
    if options.as_json:
        measured = {one.name: dict(one.metrics) for one in comparison.networks}
        print_json({"metrics": dict(comparison.metric_names), "networks": measured, "worse": worse})
    else:
        print_tables([comparison.task_table()])
        print_text(history.in_words())
        print_text(*(f"{task} ended {why} ({history.judged_on})" for task, why in worse.items()))
    say(f"wrote {out}", quiet=options.quiet)


def _settings(config: RunConfig, options: TrainOptions) -> RunConfig:
    """The config with the options in place of its section `fit`."""
    from branchnet.cli.loading import changed

    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("steps", "batch_size", "learning_rate")
        if getattr(options, name) is not None
    }
    return changed(config, fit=config.fit.model_dump(exclude_unset=True) | given) if given else config


def _path(settings: RunConfig, config: Path, options: TrainOptions) -> Path:
    from branchnet.errors import SpecError

    if options.branched is not None:
        return options.branched
    if settings.branched is None:
        raise SpecError(
            f"{config} names no branched network; expected --branched PATH, or a line such as `branched: "
            "architecture.yaml`: what `branchnet search` or `branchnet build` wrote"
        )
    return config.parent / settings.branched


def _network(path: Path, config: Path, settings: RunConfig, device: str | None) -> BranchedNetwork:
    from branchnet.cli.saved_networks import built_or_saved
    from branchnet.errors import SpecError

    network = built_or_saved(path, config, device=device)
    if missing := [task for task in network.tasks if task not in settings.networks]:
        raise SpecError(f"{config}: networks: {', '.join(missing)} is missing; {path} has it")
    return network


def _plan(network: BranchedNetwork, settings: RunConfig) -> Plan:
    import torch

    from branchnet.pipeline.plans.dry_run import Plan, plan_distillation
    from branchnet.utils.installed_torch.torch_internals import pytree

    device = next(network.parameters()).device
    stages = [cost.activation_bytes * width for cost, width in zip(network.costs, network.tree.copies, strict=True)]
    return plan_distillation(
        Plan("train"),
        f"train {settings.fit.steps} batches of {settings.fit.batch_size}",
        [network],
        pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), network.interface.random()),
        steps=settings.fit.steps * settings.fit.accumulate,
        batch_size=settings.fit.batch_size,
        activations=sum(stages) + sum(cost.activation_bytes for cost in network.head_costs.values()),
    )
