"""Training one branched network alone, and judging each task before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, SeparateNetworks
from branchnet.data.collation import placed
from branchnet.data.samples import Source, read_samples
from branchnet.pipeline.config.run_config import Kind, RunOptions
from branchnet.pipeline.output_kinds import known_kinds, metrics_of
from branchnet.pipeline.problem import divide, donor_outputs, set_aside
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.stages import split_all
from branchnet.training import History, Teachers, distill, evaluate, reestimate_batchnorm

STITCH_SETTINGS = ("temperature", "precision", "accumulate", "clip", "compile")
"""Settings of the section `distill` that hold for the stitching layers alone, too."""


@dataclass(frozen=True)
class DistillationInputs:
    """What a branched network is distilled with.

    Attributes:
        networks: its single-task networks by task, or teachers on `train`.
        train: images to train on.
        validation: other images.
        options: how it is trained.
        kinds: the kinds of some tasks; teachers know those of theirs.
    """

    networks: Mapping[str, nn.Module] | Teachers
    train: Source
    validation: Source
    options: RunOptions
    kinds: Mapping[str, Kind] | None = None


def teachers_for(
    networks: Mapping[str, nn.Module],
    staged: Mapping[str, nn.Module],
    images: Source,
    options: RunOptions,
    kinds: Mapping[str, Kind],
) -> Teachers:
    """The teachers that a run's settings ask for.

    Args:
        networks: the single-task networks by task.
        staged: the same, split, whose features can be matched.
        images: K samples to train on.
        options: how it is trained.
        kinds: the kind of each task.

    Returns:
        The teachers.
    """
    settings = options.distillation
    return Teachers(
        networks if settings.get("match", "outputs") == "outputs" else staged,
        images,
        batch_size=options.batch_size,
        kinds=kinds,
        temperature=settings.get("temperature", 1.0),
    )


def example_of(images: Source, networks: Mapping[str, nn.Module]) -> Any:
    """One input, as the networks take it, where they are."""
    device = next(next(iter(networks.values())).parameters()).device
    return placed(read_samples(images).take(torch.tensor([0])).inputs, device)


def distil_and_compare(
    branched: BranchedNetwork | GroupedNetworks,
    networks: Mapping[str, nn.Module],
    images: Source,
    options: RunOptions,
    *,
    kinds: Mapping[str, Kind],
    checkpoint: Path | None = None,
) -> Comparison:
    """Train `branched` in place to give the single-task networks' outputs; leave it in eval mode.

    Args:
        branched: the network; of grouped ones each is trained by itself.
        networks: its single-task networks by task.
        images: K samples, divided as `branchnet.run` divides them.
        options: how it is trained; with no steps only BatchNorm statistics are estimated again.
        kinds: the kinds of some tasks; the others show in the outputs.
        checkpoint: a file to resume from after an interruption.

    Returns:
        The single-task networks, the branched one before and after, on the held-out images.
    """
    train, test = divide(images, options)
    targets = donor_outputs(networks, test, options.batch_size)
    known = known_kinds(kinds, targets)
    metrics = metrics_of(known)[0]

    def judged(name: str, network: BranchedNetwork | GroupedNetworks | SeparateNetworks) -> ComparedNetwork:
        return ComparedNetwork(name, evaluate(network, test, targets, metrics, batch_size=options.batch_size))

    compared = [judged("separate", SeparateNetworks(networks).eval()), judged("before", branched)]
    train, validation = set_aside(train)
    for number, one in enumerate(_each(branched)):
        if options.steps:
            file = checkpoint if one is branched or checkpoint is None else _numbered(checkpoint, number)
            own: Mapping[str, nn.Module] = {task: networks[task] for task in one.tasks}
            if options.distillation.get("match", "outputs") != "outputs":
                depth: Literal["common", "auto"] = "auto" if one.tree.depths else "common"
                own = split_all(own, example_of(train, own), locations=list(one.locations), depth=depth)
            of_these = {task: known[task] for task in own}
            distill_in_two_steps(one, DistillationInputs(own, train, validation, options, of_these), checkpoint=file)
        else:
            reestimate_batchnorm(one, train)
    compared.append(judged("distilled", branched.eval()))
    return Comparison(
        tuple(compared),
        {task: metric.name for task, metric in metrics.items()},
        {task: not metric.larger_is_better for task, metric in metrics.items()},
    )


def distill_in_two_steps(
    branched: BranchedNetwork, given: DistillationInputs, *, checkpoint: Path | None = None, name: str = "branched"
) -> dict[str, History]:
    """Distil the stitching layers alone, then the whole network; both keep the best state on held-out images.

    Args:
        branched: the network, trained in place.
        given: what it is trained with.
        checkpoint: a file to resume the second step from after an interruption; one next to it is for the first.
        name: what the progress bars say.

    Returns:
        The history of each step that was taken, `stitches` and `whole`.
    """
    first = None if checkpoint is None else _first_checkpoint(checkpoint)
    histories = {}
    if given.options.steps:
        histories = distill_stitches(branched, given, checkpoint=first, name=name)
        histories |= distill_whole(branched, given, checkpoint=checkpoint, name=name)
    if first is not None:
        first.unlink(missing_ok=True)
    return histories


def _each(network: BranchedNetwork | GroupedNetworks) -> tuple[BranchedNetwork, ...]:
    return network.branched_networks if isinstance(network, GroupedNetworks) else (network,)


def _numbered(checkpoint: Path, number: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.{number}{checkpoint.suffix}")


def distill_stitches(
    branched: BranchedNetwork, given: DistillationInputs, *, checkpoint: Path | None = None, name: str = "branched"
) -> dict[str, History]:
    """Distil the stitching layers alone, which match outputs at the default rate; nothing where there are none.

    Args:
        branched: the network, trained in place.
        given: what it is trained with.
        checkpoint: a file to resume from.
        name: what the progress bar says.

    Returns:
        The history under `stitches`; nothing where there was nothing to train.
    """
    if not branched.stitches or not given.options.stitch_steps:
        return {}
    settings = {key: value for key, value in given.options.distillation.items() if key in STITCH_SETTINGS}
    settings |= {"steps": given.options.stitch_steps, "scope": "stitches"}
    return {"stitches": _distilled(branched, given, checkpoint, f"distil stitches of {name}", settings)}


def distill_whole(
    branched: BranchedNetwork, given: DistillationInputs, *, checkpoint: Path | None = None, name: str = "branched"
) -> dict[str, History]:
    """Distil the whole network, as the section `distill` says.

    Args:
        branched: the network, trained in place.
        given: what it is trained with.
        checkpoint: a file to resume from.
        name: what the progress bar says.

    Returns:
        The history under `whole`.
    """
    options = given.options
    settings = {"steps": options.steps, "learning_rate": options.learning_rate, **options.distillation}
    return {"whole": _distilled(branched, given, checkpoint, f"distil {name}", settings)}


def _distilled(
    branched: BranchedNetwork,
    given: DistillationInputs,
    checkpoint: Path | None,
    description: str,
    settings: Mapping[str, Any],
) -> History:
    return distill(
        branched,
        given.networks,
        given.train,
        batch_size=given.options.batch_size,
        kinds=given.kinds,
        validation=given.validation,
        seed=given.options.seed,
        checkpoint=checkpoint,
        description=description,
        **settings,
    )


def _first_checkpoint(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.stitches{checkpoint.suffix}")
