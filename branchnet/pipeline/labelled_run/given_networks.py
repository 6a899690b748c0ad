"""Networks that a config gives without saying whether they are trained: those that show that they are not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.utils.data import Subset

from branchnet.builder import SeparateNetworks
from branchnet.errors import SpecError, TrainingError
from branchnet.pipeline.config.run_config import RunConfig
from branchnet.pipeline.labelled_run.label_sources import LabelSources
from branchnet.pipeline.labelled_run.prepared_samples import OneTask
from branchnet.training import constant_scores, evaluate

JUDGED = 256
"""Samples at most, spread evenly."""


def refuse_untrained(config: RunConfig, networks: Mapping[str, nn.Module], sources: LabelSources) -> None:
    """Refuse networks of factories that do worse than a constant answer, where nothing says that they shall.

    Whatever a branched network then reached would be a gain against nothing.

    Args:
        config: the config.
        networks: all networks by task.
        sources: samples with labels; some of `train` judge, which a trained network of the task may well know.

    Raises:
        SpecError: such networks, with what to write instead.
    """
    doubtful = [task for task, net in config.networks.items() if net.train is None and net.factory and not net.weights]
    found = []
    count = len(sources.train)  # type: ignore[arg-type]
    spread = list(range(0, count, -(-count // JUDGED)))
    for task in doubtful:
        metric = sources.metrics[task]
        if metric.constant is None:
            continue
        samples = OneTask(Subset(sources.train, spread), task)
        try:
            network = SeparateNetworks({task: networks[task]})
            own = evaluate(network, samples, None, {task: metric}, batch_size=config.batch_size)[task]
            constant = constant_scores(samples, samples, {task: metric})[task]
        except TrainingError:  # no label of the task among these, or of one class alone: nothing can be said here
            continue
        if own < constant if metric.larger_is_better else own > constant:
            found.append(f"{task!r} ({metric.name} {own:.4g}, constant {constant:.4g})")
    if found:
        raise SpecError(
            f"networks whose factories give them no trained weights, it seems: {', '.join(found)}, on samples of "
            "`train`; expected trained ones, or with the network, under `networks:`, `weights: FILE`, "
            "`train: true` to train it on the labels first, or `train: false` to take it as it is"
        )
