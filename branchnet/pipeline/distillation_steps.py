"""Training one branched network alone, and judging each task before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from branchnet.builder import BranchedNetwork, SeparateNetworks
from branchnet.data.samples import Source
from branchnet.pipeline.config.run_config import Kind, RunOptions
from branchnet.pipeline.problem import divide, donor_outputs, metrics_of
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.training import distill, evaluate, reestimate_batchnorm


def distil_and_compare(
    branched: BranchedNetwork,
    networks: Mapping[str, nn.Module],
    images: Source,
    options: RunOptions,
    *,
    kinds: Mapping[str, Kind],
    checkpoint: Path | None = None,
) -> Comparison:
    """Train `branched` in place to give the single-task networks' outputs; leave it in eval mode.

    Args:
        branched: the network.
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

    def judged(name: str, network: BranchedNetwork | SeparateNetworks) -> ComparedNetwork:
        return ComparedNetwork(name, evaluate(network, test, targets, metrics, batch_size=options.batch_size))

    compared = [judged("separate", SeparateNetworks(networks).eval()), judged("before", branched)]
    if options.steps:
        distill(
            branched,
            networks,
            train,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            checkpoint=checkpoint,
        )
    else:
        reestimate_batchnorm(branched, train)
    compared.append(judged("distilled", branched.eval()))
    return Comparison(
        tuple(compared),
        {task: metric.name for task, metric in metrics.items()},
        {task: not metric.larger_is_better for task, metric in metrics.items()},
    )
