"""Training a branched network with labels: its stitching layers first, without labels, then all of it."""

from __future__ import annotations

from pathlib import Path

from branchnet.builder import BranchedNetwork
from branchnet.pipeline.distillation_steps import DistillationInputs, distill_stitches, distill_whole
from branchnet.pipeline.problem import Problem
from branchnet.training import History, Teachers, fit


def train_on_labels(
    branched: BranchedNetwork, teachers: Teachers, problem: Problem, unfinished: Path | None, name: str
) -> dict[str, History]:
    """Distil the stitching layers, then the whole network where the options have steps for it, then train on labels.

    The stitching layers were fitted one by one, and the single-task networks say on every input, labelled or not, what
    should come out behind them. The rest starts from trained weights, and goes on with the labels.

    Args:
        branched: the network, trained in place and left in eval mode.
        teachers: its single-task networks on the training inputs.
        problem: what is asked, with labels.
        unfinished: a file to resume from; those of the single phases lie next to it.
        name: what the progress bars say.

    Returns:
        The history of each phase, that of the training on labels, `labels`, last.
    """
    labelled, options = problem.labelled, problem.options
    assert labelled is not None
    files = {
        part: None if unfinished is None else _beside(unfinished, part) for part in ("stitches", "distilled", "fit")
    }
    given = DistillationInputs(teachers, problem.train, problem.validation, options)
    histories = distill_stitches(branched, given, checkpoint=files["stitches"], name=name)
    if options.steps:
        histories |= distill_whole(branched, given, checkpoint=files["distilled"], name=name)
    histories["labels"] = fit(
        branched,
        labelled.train,
        labelled.losses,
        validation=labelled.validation,
        seed=options.seed,
        checkpoint=files["fit"],
        description=f"train {name}",
        **labelled.settings,
    )
    for file in files.values():
        if file is not None:
            file.unlink(missing_ok=True)
    return histories


def _beside(unfinished: Path, part: str) -> Path:
    return unfinished.with_name(f"{unfinished.stem}.{part}{unfinished.suffix}")
