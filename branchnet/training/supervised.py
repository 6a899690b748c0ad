"""Training with labels: branched networks, or the single-task networks that everything starts from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.collation import moved, placed
from branchnet.data.samples import Batch, Source
from branchnet.errors import DataError, TrainingError
from branchnet.stages import call
from branchnet.training.constant_answer import LARGEST, best_constant
from branchnet.training.grouped_training import trains_each_network
from branchnet.training.held_out_samples import MOST, HeldOutSamples
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.labelled_data import LabelledData, labelled_data
from branchnet.training.labels import KnownLabels, known_labels
from branchnet.training.optimization.batch_order import Mix
from branchnet.training.optimization.groups import Group, Rate, check_rate, node_groups, trained_tasks
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loop import Judge, Objective, optimize
from branchnet.training.optimization.loss_parameters import check_losses, loss_modules, loss_parameters
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
from branchnet.training.output_losses import MatchKind
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import content_hash, losses_hash, network_hash, teachers_hash
from branchnet.training.teachers import Teachers
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

Loss = Callable[[Any, Any], Tensor]
Losses = Loss | Mapping[str, Loss]

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
        keep: `"best"`: the state with the smallest mean loss on held-out samples; `"last"`.
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
        schedule=schedule, precision=precision, accumulate=accumulate, clip=clip, compile=compile, callbacks=callbacks,
        logger=logger, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, checkpoint_every=checkpoint_every,
        progress=progress, description=description,
    )  # fmt: skip
    if reason := getattr(network, "eval_only", ""):
        raise TrainingError(f"this network can only be evaluated ({reason}); expected one that can be trained")
    functions = _by_task(network, losses, teachers or {})
    if learning_rate != "auto" and not callable(learning_rate):
        check_rate(learning_rate)
    data = labelled_data(network, train, labels, tuple(functions), validation, settings, mix)
    judges = None
    if teachers:
        if data.by_task:
            raise TrainingError("teachers and data by task are given; expected samples that all tasks have in common")
        judges = Teachers(teachers, data.samples, progress=progress, kinds=kinds)
        functions |= judges.losses
    training = _Training(network, functions, data, settings, judges, torch.compile(network) if compile else None)
    rate = learning_rate if learning_rate == "auto" else 1.0
    weighting = _weighting(weights, training.tasks, network)
    given: Rate = 1.0 if learning_rate == "auto" else learning_rate
    groups = training.groups(given, divide_rate)
    if weighting is not None:
        own = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
        groups.append(Group(own, 1.0 if callable(given) else given, weight_decay=0.0))
    network.train()
    try:
        return optimize(
            network,
            Objective(training.losses, training.counts, training.tasks),
            groups,
            settings,
            draws=data.draws,
            rate=rate,
            weighting=weighting,
            beside=[module for held in training.modules.values() for module in held],
            judge=training.judge(metrics, needed=learning_rate == "auto" or keep == "best" or patience is not None),
            identity=training.identity(weights) if checkpoint is not None else {},
            legacy_content=lambda: content_hash(network, data.samples, training.frozen),
            samples=data.count,
        )
    finally:
        network.eval()


@dataclass(frozen=True)
class _Training:
    """What of a network is trained, on which data."""

    network: nn.Module
    functions: Mapping[str, Loss]
    data: LabelledData
    settings: Settings
    teachers: Teachers | None = None
    compiled: Any = None

    @property
    def taught(self) -> tuple[str, ...]:
        """The tasks that learn from a network."""
        return () if self.teachers is None else self.teachers.tasks

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.functions)

    @property
    def frozen(self) -> Collection[str]:
        return self.network.frozen if isinstance(self.network, BranchedNetwork) else frozenset()

    @property
    def modules(self) -> dict[str, list[nn.Module]]:
        return loss_modules(self.functions)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def groups(self, learning_rate: Rate, divided: bool) -> list[Group]:
        """The parameters of the network by node, and those of the losses."""
        if isinstance(self.network, BranchedNetwork):
            groups = node_groups(self.network, learning_rate, divided=divided)
        elif callable(learning_rate):
            raise TrainingError(
                "learning_rate is a function of a node and the network is not branched; expected a number"
            )
        else:
            groups = [Group([p for p in self.network.parameters() if p.requires_grad], learning_rate)]
        return groups + _loss_groups(self.network, self.modules, learning_rate, groups)

    def known(self, batch: Batch | Mapping[str, Batch]) -> dict[str, KnownLabels]:
        """The labels of a batch, or of a batch for each task."""
        if isinstance(batch, Mapping):
            return {task: label for task, one in batch.items() for task, label in self._of_task(task, one).items()}
        labelled = [task for task in self.tasks if task not in self.taught]
        if not labelled:
            return {}
        return known_labels(batch, self.data.labels if batch.labels is None else None, labelled)

    def _of_task(self, task: str, batch: Batch) -> dict[str, KnownLabels]:
        return known_labels(batch, None, [task])

    def counts(self, batch: Batch | Mapping[str, Batch]) -> dict[str, int]:
        """How many samples have a label for each task."""
        counts = {task: labels.count for task, labels in self.known(batch).items()}
        return counts | dict.fromkeys(self.taught, len(batch))

    def losses(self, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """Each task's mean loss over the samples with a label."""
        return {
            task: _scalar(task, self.functions[task](output, labels))
            for task, (output, labels, _) in self.judged(batch, self.tasks).items()
        }

    def judged(self, batch: Batch | Mapping[str, Batch], tasks: Sequence[str]) -> dict[str, tuple[Any, Any, int]]:
        """Outputs, labels and their number, of the samples with a label."""
        known = {task: labels for task, labels in self.known(batch).items() if task in tasks}
        if self.teachers is not None and isinstance(batch, Batch):
            with torch.no_grad():
                taught = self.teachers.outputs(batch, self.taught, self.device)
            known |= {task: KnownLabels(output, None, len(batch)) for task, output in taught.items() if task in tasks}
        if not known:
            return {}
        outputs = self._outputs(batch, tuple(known))
        return {
            task: (labels.of(outputs[task]), moved(labels.values, self.device), labels.count)
            for task, labels in known.items()
        }

    def _outputs(self, batch: Batch | Mapping[str, Batch], tasks: tuple[str, ...]) -> dict[str, Any]:
        network = self._called()
        if isinstance(batch, Mapping):
            found = {}
            for task in tasks:
                found[task] = network(placed(batch[task].inputs, self.device), (task,))[task]
            return found
        inputs = placed(batch.inputs, self.device)
        if isinstance(self.network, BranchedNetwork):
            return dict(network(inputs, tasks))
        return {"loss": call(network, inputs)}

    def _called(self) -> Any:
        """The network, or in training what torch.compile makes of it."""
        return self.compiled if self.compiled is not None and self.network.training else self.network

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
        tasks = self.tasks
        _check_metrics(metrics or {}, tasks)
        return Judge(
            tasks,
            partial(_measured, self, held, tasks, metrics or {}),
            _constants(self, held, tasks),
            held.judged_on,
            lambda task, before: EQUAL * abs(before),
            held.not_finite,
        )

    def _check_labelled(self, batches: Iterator[Batch], which: str) -> None:
        """Refuse tasks that none of these samples has a label for."""
        seen = {task for batch in batches for task in self.counts(batch)}
        if missing := [task for task in self.tasks if task not in seen]:
            raise DataError(
                f"the {which} lack labels of {missing}; expected some for each task that is trained: freeze the "
                "others, or pass validation= where labels are rare"
            )

    def identity(self, weights: Any) -> dict[str, str]:
        """What a checkpoint must be of."""
        found = {"weights": network_hash(self.network, self.frozen), "losses": losses_hash(self.functions)}
        if self.teachers is not None:
            found["teachers"] = teachers_hash(self.teachers.networks)
        if self.data.held_out is not None:
            found["every"] = str(self.settings.every)
        if weights is not None:
            found["weighting"] = str(weights) if isinstance(weights, str | Mapping) else code_hash(weights)
        return found | self.data.identity()


def _measured(
    training: _Training, held: HeldOutSamples, tasks: Sequence[str], metrics: Mapping[str, AnyMetric]
) -> tuple[dict[str, float], dict[str, float]]:
    """Each task's loss and metric on the held-out samples, over those with a label."""
    totals, counts = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0)
    running = {task: read_metric(metric).accumulation() for task, metric in metrics.items()}
    with torch.no_grad(), evaluation_mode(training.network), seeded(0, training.device):
        for batch in held.batches():
            for task, (output, labels, count) in training.judged(batch, tasks).items():
                totals[task] += float(_scalar(task, training.functions[task](output, labels))) * count
                counts[task] += count
                if task in running:
                    running[task].update(output, labels)
    measured = {task: metric.result() for task, metric in running.items()}
    return {task: totals[task] / counts[task] for task in tasks}, measured


def _constants(training: _Training, held: HeldOutSamples, tasks: Sequence[str]) -> dict[str, float]:
    """For each task the loss of the best constant answer, over the first held-out samples."""
    kept: dict[str, list[Any]] = {task: [] for task in tasks}
    sizes = dict.fromkeys(tasks, 0)
    with torch.no_grad(), evaluation_mode(training.network), seeded(0, training.device):
        for batch in held.batches():
            for task, (output, labels, count) in training.judged(batch, tasks).items():
                if isinstance(output, Tensor) and output.is_floating_point() and sizes[task] < LARGEST:
                    kept[task].append((partial(_checked, task, training.functions[task]), output, labels, count))
                    sizes[task] += output.numel()
    found = {task: best_constant(parts) for task, parts in kept.items() if parts}
    return {task: loss for task, loss in found.items() if loss is not None}


def _check_metrics(metrics: Mapping[str, Any], tasks: Sequence[str]) -> None:
    for task, metric in metrics.items():
        if task not in tasks:
            raise TrainingError(f"metrics name {task!r}, which has no held-out labels; expected some of {list(tasks)}")
        read_metric(metric)


def _by_task(network: nn.Module, losses: Any, teachers: Mapping[str, nn.Module]) -> dict[str, Loss]:
    if teachers and not isinstance(network, BranchedNetwork):
        raise TrainingError("teachers are given and the network is not branched; expected none")
    if not isinstance(network, BranchedNetwork):
        if isinstance(losses, Mapping):
            raise TrainingError(
                f"losses are a {type(losses).__name__}; expected one function of (output, labels), as the network is "
                "not branched"
            )
        check_losses({"loss": losses})
        return {"loss": losses}
    if not isinstance(losses, Mapping):
        raise TrainingError(
            f"losses are a {type(losses).__name__}; expected a dictionary of functions by task, as the network is "
            "branched"
        )
    tasks = trained_tasks(network)
    if unknown := sorted(set(teachers) - set(tasks)):
        raise TrainingError(f"teachers name {unknown}, which are not trained; expected some of {list(tasks)}")
    if both := sorted(set(teachers) & set(losses)):
        raise TrainingError(f"tasks {both} have a teacher and a loss for labels; expected one of both")
    tasks = tuple(task for task in tasks if task not in teachers)
    for task in tasks:
        if task not in losses:
            raise TrainingError(f"task {task!r} lacks a loss; expected one, or the task frozen throughout")
    check_losses({task: losses[task] for task in tasks})
    return {task: losses[task] for task in tasks}


def _weighting(weights: Any, tasks: Sequence[str], network: nn.Module) -> Any:
    if weights is None:
        return None
    from branchnet.training.weighting.named_weightings import weighting_of

    return weighting_of(weights, tasks, network)


def _loss_groups(
    network: nn.Module,
    modules: Mapping[str, Collection[nn.Module]],
    learning_rate: Rate,
    groups: Sequence[Group],
) -> list[Group]:
    trained = [parameter for group in groups for parameter in group.parameters]
    own = loss_parameters(modules, next(network.parameters()).device, trained)
    rates = dict.fromkeys(own, learning_rate) if not callable(learning_rate) else {}
    if isinstance(network, BranchedNetwork) and callable(learning_rate):
        rates = {node.tasks[0]: learning_rate(node) for node in network.members() if node.is_head}
    return [Group(parameters, rates[task], weight_decay=0.0) for task, parameters in own.items()]


def _checked(task: str, loss: Loss, output: Any, labels: Any) -> Tensor:
    return _scalar(task, loss(output, labels))


def _scalar(task: str, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TrainingError(f"the loss of {task!r} gave {found}; expected a scalar tensor, as reduction='mean' gives")
    return loss.reshape(())
