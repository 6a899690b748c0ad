"""Training with labels: branched networks, or the single-task networks that everything starts from."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.samples import Batch, Source, read_samples
from branchnet.errors import DataError, TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.constant_answer import LARGEST, best_constant
from branchnet.training.grouped_training import trains_each_network
from branchnet.training.held_out_samples import MOST, HeldOutSamples
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.labelled_data import LabelledData, labelled_data
from branchnet.training.matching.output_losses import MatchKind
from branchnet.training.matching.recorded_outputs import RecordedOutputs
from branchnet.training.optimization.batch_order import Mix
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.groups import Group, Rate, check_rate
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loop import optimize
from branchnet.training.optimization.loss_parameters import loss_modules
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
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import (
    content_hash,
    losses_hash,
    network_hash,
    samples_hash,
    teachers_hash,
)
from branchnet.training.task_losses import Loss, TaskLosses, losses_by_task
from branchnet.training.teachers import Teachers
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

Losses = Loss | Mapping[str, Loss]

WEIGHTING_RATE = 1e-3
"""Of parameters that weigh losses, whatever the network's rate."""
EQUAL = 0.01
"""A task's loss on held-out samples that is higher by this share of what it was counts as equal."""


@trains_each_network
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
            losses stand under `<task> in network <k>`.
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
            stacklevel=2,
        )
    settings = Settings(
        steps=steps, batch_size=batch_size, seed=seed, every=every, keep=keep, patience=patience, optimizer=optimizer,
        schedule=schedule, precision=precision, accumulate=accumulate, clip=clip, compile=compile, ema=ema,
        callbacks=callbacks, logger=logger, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds,
        checkpoint_every=checkpoint_every, progress=progress, description=description,
    )  # fmt: skip
    if reason := getattr(network, "eval_only", ""):
        raise TrainingError(f"this network can only be evaluated ({reason}); expected one that can be trained")
    functions = losses_by_task(network, losses, teachers)
    if learning_rate != "auto" and not callable(learning_rate):
        check_rate(learning_rate)
    data = labelled_data(network, train, labels, tuple(functions), validation, settings, mix)
    judges = None
    if teachers:
        if data.by_task:
            raise TrainingError("teachers and data by task are given; expected samples that all tasks have in common")
        judges = Teachers(teachers, data.samples, progress=progress, kinds=kinds)
        functions |= judges.losses
    tasks = TaskLosses(network, functions, data.labels, torch.compile(network) if compile else None, judges)
    training = _Training(tasks, data, settings)
    rate = learning_rate if learning_rate == "auto" else 1.0
    weighting = _weighting(weights, tasks.tasks, network, seed)
    given: Rate = 1.0 if learning_rate == "auto" else learning_rate
    groups = tasks.groups(given, divide_rate)
    if weighting is not None:
        own = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
        groups.append(Group(own, WEIGHTING_RATE, weight_decay=0.0, scaled=False))
    network.train()
    try:
        history = optimize(
            network,
            Objective(tasks.losses, tasks.weights, tasks.tasks),
            groups,
            settings,
            draws=data.draws,
            rate=rate,
            weighting=weighting,
            beside=[module for held in tasks.modules.values() for module in held],
            judge=training.judge(metrics, needed=learning_rate == "auto" or keep == "best" or patience is not None),
            identity=training.identity(weights) | _further(network, validation, mix, kinds, divide_rate=divide_rate)
            if checkpoint is not None
            else {},
            legacy_content=lambda: content_hash(network, data.samples, training.frozen),
            samples=data.count,
        )
        never = [task for task in tasks.tasks if task not in history.losses]
        if never and not data.samples.by_number:  # the others were looked through at the start
            raise TrainingError(
                f"no sample of {steps} steps had a label of {never}; expected labels under the tasks' names, or the "
                "tasks frozen"
            )
        return history
    finally:
        network.eval()


@dataclass(frozen=True)
class _Training:
    """What is minimised, on which data."""

    tasks: TaskLosses
    data: LabelledData
    settings: Settings

    @property
    def frozen(self) -> Collection[str]:
        return self.tasks.network.frozen if isinstance(self.tasks.network, BranchedNetwork) else frozenset()

    def judge(self, metrics: Mapping[str, AnyMetric] | None, *, needed: bool) -> Judge | None:
        """Held-out samples, where something is decided or measured by them."""
        held = self.data.held_out
        if held is None or not (needed or metrics or held.judged_on == "validation samples"):
            if metrics:
                raise TrainingError("metrics are measured on held-out samples; expected validation=")
            if not self.data.by_task and self.data.samples.by_number:
                self._check_labelled(self.data.samples.first(MOST, self.settings.batch_size, seed=0), "first samples")
            return None
        self._check_labelled(held.batches(), held.judged_on)
        tasks = self.tasks.tasks
        _check_metrics(metrics or {}, tasks)
        judging = replace(self, tasks=_as_judge(self.tasks))
        constants = _constants(judging, held, tasks)
        return Judge(
            tasks,
            partial(_measured, judging, held, tasks, metrics or {}),
            constants,
            held.judged_on,
            lambda task, before: EQUAL * abs(before),
            partial(_unit, constants),
            held.not_finite,
        )

    def _check_labelled(self, batches: Iterator[Batch], which: str) -> None:
        """Refuse tasks that none of these samples has a label for."""
        seen = {task for batch in batches for task, weight in self.tasks.weights(batch).items() if weight}
        if missing := [task for task in self.tasks.tasks if task not in seen]:
            raise DataError(
                f"the {which} lack labels of {missing}; expected some for each task that is trained: freeze the "
                "others, or pass validation= where labels are rare"
            )

    def identity(self, weights: Any) -> dict[str, str]:
        """What a checkpoint must be of."""
        found = {"weights": network_hash(self.tasks.network, self.frozen), "losses": losses_hash(self.tasks.functions)}
        if self.tasks.teachers is not None:
            found["teachers"] = teachers_hash(self.tasks.teachers.networks)
        if self.data.held_out is not None:
            found["every"] = str(self.settings.every)
        if weights is not None:
            found["weighting"] = str(weights) if isinstance(weights, str | Mapping) else code_hash(weights)
        return found | self.data.identity()


def _further(
    network: nn.Module, validation: Any, mix: Mix, kinds: Mapping[str, MatchKind] | None, *, divide_rate: bool
) -> dict[str, str]:
    """What else a checkpoint must be of, where it is not as by default."""
    found = {}
    if validation is not None and not isinstance(validation, Mapping):
        found["validation"] = samples_hash(read_samples(validation, call_form(network), labels=True, lists="samples"))
    elif validation is not None:
        found["validation"] = str(
            {task: samples_hash(read_samples(one, labels=True)) for task, one in validation.items()}
        )
    found |= {} if mix == "max_size_cycle" else {"mix": mix}
    found |= {} if not kinds else {"kinds": str(sorted(kinds.items()))}
    return found | ({"divided rates": "yes"} if divide_rate else {})


def _as_judge(tasks: TaskLosses) -> TaskLosses:
    """The losses as they are before training: learned uncertainties would say what they like of a network."""
    functions = {}
    for task, loss in tasks.functions.items():
        found = copy.deepcopy(loss) if tasks.modules[task] else loss
        for module in loss_modules({task: found})[task]:
            module.eval()
        functions[task] = found
    teachers = tasks.teachers
    return replace(tasks, functions=functions, teachers=RecordedOutputs(teachers) if teachers is not None else None)


def _unit(constants: Mapping[str, float], task: str, before: float) -> float:
    """A constant answer's loss, or the loss before training: in millimetres one task would rule all others."""
    known = abs(constants.get(task, 0.0))
    return known if known > 0 else abs(before) if before else 1.0


def _measured(
    training: _Training, held: HeldOutSamples, tasks: Sequence[str], metrics: Mapping[str, AnyMetric]
) -> tuple[dict[str, float], dict[str, float]]:
    """Each task's loss and metric on the held-out samples, over those with a label."""
    totals, weights = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0.0)
    running = {task: read_metric(metric).accumulation() for task, metric in metrics.items()}
    with torch.no_grad(), evaluation_mode(training.tasks.network), seeded(0, training.tasks.device):
        for batch in held.batches():
            for task, (output, labels, weight) in training.tasks.judged(batch, tasks).items():
                totals[task] += float(training.tasks.loss(task, output, labels)) * weight
                weights[task] += weight
                if task in running:
                    running[task].update(output, labels)
    measured = {task: metric.result() for task, metric in running.items()}
    return {task: totals[task] / weights[task] for task in tasks}, measured


def _constants(training: _Training, held: HeldOutSamples, tasks: Sequence[str]) -> dict[str, float]:
    """For each task the loss of the best constant answer, over the first held-out samples."""
    kept: dict[str, list[Any]] = {task: [] for task in tasks}
    sizes = dict.fromkeys(tasks, 0)
    with torch.no_grad(), evaluation_mode(training.tasks.network), seeded(0, training.tasks.device):
        for batch in held.batches():
            for task, (output, labels, weight) in training.tasks.judged(batch, tasks).items():
                known = weight > 0 and isinstance(output, Tensor) and output.is_floating_point()
                if known and sizes[task] < LARGEST:
                    kept[task].append((partial(training.tasks.loss, task), output, labels, weight))
                    sizes[task] += output.numel()
    found = {task: best_constant(parts) for task, parts in kept.items() if parts}
    return {task: loss for task, loss in found.items() if loss is not None}


def _check_metrics(metrics: Mapping[str, Any], tasks: Sequence[str]) -> None:
    for task, metric in metrics.items():
        if task not in tasks:
            raise TrainingError(f"metrics name {task!r}, which has no held-out labels; expected some of {list(tasks)}")
        read_metric(metric)


def _weighting(weights: Any, tasks: Sequence[str], network: nn.Module, seed: int) -> Any:
    if weights is None:
        return None
    from branchnet.training.weighting.named_weightings import weighting_of

    with seeded(seed):  # what it draws, as the seed of random weights
        return weighting_of(weights, tasks, network)
