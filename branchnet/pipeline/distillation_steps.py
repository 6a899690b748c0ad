"""Training one branched network alone, and judging each task before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, SeparateNetworks
from branchnet.data.samples import Source
from branchnet.pipeline.config.run_config import Kind, RunOptions
from branchnet.pipeline.problem import divide, donor_outputs, metrics_of, set_aside
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.training import Teachers, distill, evaluate, reestimate_batchnorm
from branchnet.training.scope import Scope


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
        kinds: the kind of each task.
        checkpoint: a file to resume from after an interruption.

    Returns:
        The single-task networks, the branched one before and after, on the held-out images.
    """
    train, test = divide(images, options)
    targets = donor_outputs(networks, test, options.batch_size)
    metrics = metrics_of({task: kinds[task] for task in networks})[0]

    def judged(name: str, network: BranchedNetwork | GroupedNetworks | SeparateNetworks) -> ComparedNetwork:
        return ComparedNetwork(name, evaluate(network, test, targets, metrics, batch_size=options.batch_size))

    compared = [judged("separate", SeparateNetworks(networks).eval()), judged("before", branched)]
    train, validation = set_aside(train)
    for number, one in enumerate(_each(branched)):
        if options.steps:
            file = checkpoint if one is branched or checkpoint is None else _numbered(checkpoint, number)
            own = {task: networks[task] for task in one.tasks}
            known = {task: kind for task, kind in kinds.items() if task in own}
            distill_in_two_steps(one, own, train, validation, options, kinds=known, checkpoint=file)
        else:
            reestimate_batchnorm(one, train)
    compared.append(judged("distilled", branched.eval()))
    return Comparison(
        tuple(compared),
        {task: metric.name for task, metric in metrics.items()},
        {task: not metric.larger_is_better for task, metric in metrics.items()},
    )


def distill_in_two_steps(
    branched: BranchedNetwork,
    networks: Mapping[str, nn.Module] | Teachers,
    train: Source,
    validation: Source,
    options: RunOptions,
    *,
    kinds: Mapping[str, Kind] | None = None,
    checkpoint: Path | None = None,
    name: str = "branched",
) -> None:
    """Distil the stitching layers alone, then the whole network; both keep the best state on held-out images.

    Args:
        branched: the network, trained in place.
        networks: its single-task networks, or teachers on `train`.
        train: images to train on.
        validation: other images.
        options: how it is trained.
        kinds: the kinds of some tasks; teachers know those of theirs.
        checkpoint: a file to resume the second step from after an interruption; one next to it is for the first.
        name: what the progress bars say.
    """
    phases: list[tuple[Scope, int, float | Literal["auto"] | None]] = [
        ("stitches", options.stitch_steps if branched.stitches else 0, None),
        ("all", options.steps, options.learning_rate),
    ]
    for scope, steps, rate in phases:
        if steps:
            file = checkpoint if scope == "all" or checkpoint is None else _first_checkpoint(checkpoint)
            distill(
                branched,
                networks,
                train,
                steps=steps,
                batch_size=options.batch_size,
                learning_rate=rate,
                scope=scope,
                kinds=kinds,
                validation=validation,
                seed=options.seed,
                checkpoint=file,
                description=f"distil {name}" if scope == "all" else f"distil stitches of {name}",
            )
    if checkpoint is not None:
        _first_checkpoint(checkpoint).unlink(missing_ok=True)


def _each(network: BranchedNetwork | GroupedNetworks) -> tuple[BranchedNetwork, ...]:
    return network.branched_networks if isinstance(network, GroupedNetworks) else (network,)


def _numbered(checkpoint: Path, number: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.{number}{checkpoint.suffix}")


def _first_checkpoint(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.stitches{checkpoint.suffix}")
