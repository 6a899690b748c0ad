"""Training one branched network on labels alone, and judging each task before and after."""

from __future__ import annotations

from pathlib import Path

from branchnet.builder import BranchedNetwork
from branchnet.pipeline.config.run_config import RunConfig
from branchnet.pipeline.labelled_run.label_sources import LabelSources
from branchnet.pipeline.labelled_run.single_training import fit_settings
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.reporting.comparison import CONSTANT
from branchnet.training import History, constant_scores, evaluate, fit


def fit_and_compare(
    branched: BranchedNetwork, sources: LabelSources, config: RunConfig, *, checkpoint: Path | None = None
) -> tuple[History, Comparison]:
    """Train `branched` in place on labels; leave it in eval mode.

    Args:
        branched: the network.
        sources: samples with labels of all its tasks.
        config: how it is trained.
        checkpoint: a file to resume from after an interruption.

    Returns:
        The history, with validation metrics; and the network before and after on `test`, or on `validation` where the
        config names no `test`, next to constant answers.
    """
    metrics = {task: sources.metrics[task] for task in branched.tasks}
    judged_on = sources.validation if sources.test is None else sources.test
    size = config.fit.batch_size

    def judged(name: str) -> ComparedNetwork:
        return ComparedNetwork(name, evaluate(branched, judged_on, None, metrics, batch_size=size))

    compared = [judged("before")]
    history = fit(
        branched,
        sources.train,
        {task: sources.losses[task] for task in branched.tasks},
        validation=sources.validation,
        metrics=metrics,
        seed=config.seed,
        checkpoint=checkpoint,
        **fit_settings(config),
    )
    compared.append(judged("trained"))
    if all(metric.constant is not None for metric in metrics.values()):
        scores = constant_scores(sources.train, judged_on, metrics)
        compared.append(ComparedNetwork(CONSTANT, scores))
    names = {task: metric.name for task, metric in metrics.items()}
    return history, Comparison(
        tuple(compared), names, {task: not metric.larger_is_better for task, metric in metrics.items()}
    )
