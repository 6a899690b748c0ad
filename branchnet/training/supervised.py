"""Training with labels: branched networks, or the single-task networks that everything starts from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from branchnet.data.samples import Source
from branchnet.errors import TrainingError
from branchnet.training.grouped_training import takes_grouped_and_sharing
from branchnet.training.judging.foreign_metrics import AnyMetric
from branchnet.training.matching.output_losses import MatchKind
from branchnet.training.optimization.batch_order import Mix
from branchnet.training.optimization.groups import Group, Rate, check_rate
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loop import optimize
from branchnet.training.optimization.objective import Objective
from branchnet.training.optimization.observers import Callback, Logger
from branchnet.training.optimization.run_settings import (
    LARGEST_GRADIENT,
    SECONDS_BETWEEN_CHECKPOINTS,
    Keep,
    OptimizerFactory,
    Precision,
    Settings,
)
from branchnet.training.optimization.schedules import Schedule
from branchnet.training.resuming.run_identity import (
    content_hash,
)
from branchnet.training.supervised_run import further_identity, supervised_run
from branchnet.training.task_losses import Loss
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.random_state import seeded

Losses = Loss | Mapping[str, Loss]

WEIGHTING_RATE = 1e-3
"""Of parameters that weigh losses, whatever the network's rate."""


@takes_grouped_and_sharing
@keeping_freed_memory()
def fit(
    network: nn.Module,
    train: Source | Mapping[str, Source],
    losses: Losses | Any,
    deprecated_losses: Losses | None = None,
    *,
    labels: Any = None,
    teachers: Mapping[str, nn.Module] | None = None,
    kinds: Mapping[str, MatchKind] | None = None,
    validation: Source | None = None,
    metrics: Mapping[str, AnyMetric] | None = None,
    every: int | None = None,
    keep: Keep = "best",
    patience: int | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: Rate | Literal["auto"] = "auto",
    divide_rate: bool = False,
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule = "cosine",
    weights: Any = None,
    mix: Mix = "max_size_cycle",
    precision: Precision = "32",
    accumulate: int = 1,
    clip: float | None = LARGEST_GRADIENT,
    compile: bool = False,
    ema: float | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] = (),
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    checkpoint_every: int | None = None,
    progress: bool = True,
    description: str = "fit",
) -> History:
    """Train `network` in place on labels.

    By default the learning rate is the largest of a short range test after which no task is worse on held-out samples,
    and the state that is kept is the best one on them, that before the first step included: a tenth of the samples, at
    most 256, is set aside where no `validation` is given. Started by torchrun, each process takes its share of every
    batch, and all end with the same network.

    Args:
        network: a `BranchedNetwork` with losses by task, or any network with one loss. It is trained on the device
            where it is, and left in eval mode. Of `GroupedNetworks` each is trained by itself with all of its tasks, as
            they share nothing: one after the other, by the same seed, with a checkpoint of its own; an auxiliary task's
            losses stand under `<task> in network <k>`. Of a `SharingNetwork` samples go through the path of each task
            that they have a label of.
        train: K samples with labels, in whatever `branchnet.data.read_samples` takes: (inputs, label) from each, or for
            a branched network (inputs, {task: label}); in memory `(x, y)` or `(x, {task: y})`. A label that a sample
            lacks is None, or left out of the mapping, or in floating-point labels NaN throughout: its task's loss is
            the mean over the others, and a task without any in a batch is not run. Or `{task: samples}`, a data set of
            its own for each task. Tensors and data sets are drawn from at random; a DataLoader, which may shuffle and
            use workers and pinned memory, is read batch by batch, and brings its own batch size.
        losses: a function of (output, labels of a batch) to a scalar, or one for each task; their sum is minimised. The
            parameters of losses that are modules, as learned uncertainties, are trained, too, without weight decay.
            Tasks of which everything is frozen need none, and are not run.
        deprecated_losses: of the call `fit(network, images, labels, losses)`, which ends with 0.3.
        labels: of that call.
        teachers: single-task networks of tasks of a branched network that have no labels, which learn their outputs as
            `distill` does; they need no loss.
        kinds: what the outputs of some of these are; see `distill`.
        validation: held-out samples with labels, as `train`.
        metrics: for each task a metric that is measured on them, too.
        every: steps between two measurements on them; by default a tenth of the run, between 10 and 200.
        keep: `"best"`: the state with the smallest losses on held-out samples, in units of constant answers, where what
            makes a task worse than before counts three times; `"last"`.
        patience: end where the best state is so many measurements ago.
        steps: updates of the weights.
        batch_size: samples a batch, over all processes.
        learning_rate: peak rate, or `"auto"`; for a branched network also a function from a node
            (`branchnet.builder.Node`) to its peak rate, and a loss's parameters get that of its task's head.
        divide_rate: in a branched network, divide a node's rate by the number of tasks that it serves.
        optimizer: from parameter groups to an optimiser; AdamW by default.
        schedule: `"cosine"` (after a warm-up over 5% of the steps), `"constant"`, or a function of (step, steps) to
            the share of the peak rate.
        weights: of the tasks' losses; see `branchnet.training.weighting_of`.
        mix: for `{task: samples}`: `"max_size_cycle"`: each step takes a batch of every task; `"round_robin"`;
            `"proportional"`: each step of a task drawn by the sizes of the data sets.
        precision: `"32"`, or `"bf16"` or `"fp16"` for forward passes under autocast, which need the extra `train`.
        accumulate: batches for each update.
        clip: largest norm of the gradient of all parameters; None for none.
        compile: run the network through torch.compile.
        ema: decay of an exponential moving average of the weights, 0.999, say, which is measured and kept in place of
            the last ones; in short runs it grows to that, see `MovingAverage`. None for none.
        callbacks: functions of an `Event`, told of every step, measurement and the end; True ends training.
        logger: one or more objects with `log_metrics(numbers, step)`, as Lightning's loggers.
        seed: of the order of the samples and of what is drawn in training.
        checkpoint: a file to resume from after an interruption, by the same call with a network and losses as they were
            before training. It stays at the end: remove it once the result is saved. Until then the same call gives the
            result at once, and one with more `steps` goes on from there, at the rates of the longer schedule.
        checkpoint_seconds: time between two savings; 0 saves after each step.
        checkpoint_every: steps between two savings, in place of the time.
        progress: whether to draw a progress bar on stderr.
        description: what it is called.

    Returns:
        the loss at every step, by task (of a single network under the name `loss`), and the losses on held-out samples
        before and after; `.worse` names the tasks that ended worse than they began, or than a constant answer.

    Raises:
        TrainingError: labels or losses missing or of the wrong length, a network that cannot be trained, a loss with
            parameters that nothing would train, divergence, an extra that is needed and not installed.
        CheckpointError: a checkpoint of another run (what differs is named), a damaged one, or one that cannot be
            written.
        DataError: samples that cannot be read, or cannot be matched with the labels.

    >>> import torch, branchnet
    >>> network = torch.nn.Linear(4, 1)
    >>> x = torch.rand(64, 4)
    >>> loss = torch.nn.MSELoss()
    >>> history = branchnet.fit(network, (x, x.sum(1, keepdim=True)), loss, steps=20, progress=False)
    >>> len(history.losses["loss"]), history.judged_on
    (20, 'held-out samples')
    >>> history.after["loss"] < history.before["loss"]
    True
    """
    if deprecated_losses is not None or labels is not None:
        labels, losses = (losses, deprecated_losses) if deprecated_losses is not None else (labels, losses)
        warnings.warn(
            "fit(network, images, labels, losses) ends with 0.3; expected fit(network, (images, labels), losses)",
            DeprecationWarning,
            stacklevel=4,  # past both decorators
        )
    settings = Settings(
        steps=steps, batch_size=batch_size, seed=seed, every=every, keep=keep, patience=patience, optimizer=optimizer,
        schedule=schedule, precision=precision, accumulate=accumulate, clip=clip, compile=compile, ema=ema,
        callbacks=callbacks, logger=logger, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds,
        checkpoint_every=checkpoint_every, progress=progress, description=description,
    )  # fmt: skip
    if reason := getattr(network, "eval_only", ""):
        raise TrainingError(f"this network can only be evaluated ({reason}); expected one that can be trained")
    if learning_rate != "auto" and not callable(learning_rate):
        check_rate(learning_rate)
    run = supervised_run(network, train, losses, settings, labels, teachers, kinds, validation, mix)
    weighting = _weighting(weights, run.tasks.tasks, network, seed)
    groups = run.tasks.groups(1.0 if learning_rate == "auto" else learning_rate, divide_rate)
    if weighting is not None:
        own = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
        groups.append(Group(own, WEIGHTING_RATE, weight_decay=0.0, scaled=False))
    identity: dict[str, str] = {}
    if checkpoint is not None:
        identity = run.identity(weights) | further_identity(network, validation, mix, kinds, divide_rate=divide_rate)
    network.train()
    try:
        history = optimize(
            network,
            Objective(run.tasks.losses, run.tasks.weights, run.tasks.tasks),
            groups,
            settings,
            draws=run.data.draws,
            rate="auto" if learning_rate == "auto" else 1.0,
            weighting=weighting,
            further_modules=[module for held in run.tasks.modules.values() for module in held],
            judge=run.judge(metrics, needed=learning_rate == "auto" or keep == "best" or patience is not None),
            identity=identity,
            legacy_content=lambda: content_hash(network, run.data.samples, run.frozen),
            samples=run.data.count,
        )
    finally:
        network.eval()
    run.check_seen(history)
    return history


def _weighting(weights: Any, tasks: Sequence[str], network: nn.Module, seed: int) -> Any:
    if weights is None:
        return None
    from branchnet.training.weighting.named_weightings import weighting_of

    with seeded(seed):  # what it draws, as the seed of random weights
        return weighting_of(weights, tasks, network)
