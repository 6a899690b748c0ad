"""What `fit` minimises, on which data, and what held-out labels say of the network."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.samples import Batch, read_samples
from branchnet.errors import DataError, TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.constant_answer import LARGEST, best_constant
from branchnet.training.held_out_samples import MOST, HeldOutSamples
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.labelled_data import LabelledData, labelled_data
from branchnet.training.matching.output_losses import MatchKind
from branchnet.training.matching.recorded_outputs import RecordedOutputs
from branchnet.training.optimization.batch_order import Mix
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loss_parameters import loss_modules
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import losses_hash, network_hash, samples_hash, teachers_hash
from branchnet.training.task_losses import TaskLosses, losses_by_task
from branchnet.training.teachers import Teachers
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

EQUAL = 0.01
"""A task's loss on held-out samples that is higher by this share of what it was counts as equal."""


@dataclass(frozen=True)
class SupervisedRun:
    """What is minimised, on which data.

    Attributes:
        tasks: the network and the losses of its tasks.
        data: samples to train on, and held-out ones.
        settings: of the run.
    """

    tasks: TaskLosses
    data: LabelledData
    settings: Settings

    @property
    def frozen(self) -> Collection[str]:
        """What of a branched network is frozen."""
        return self.tasks.network.frozen if isinstance(self.tasks.network, BranchedNetwork) else frozenset()

    def judge(self, metrics: Mapping[str, AnyMetric] | None, *, needed: bool) -> Judge | None:
        """Held-out samples, where something is decided or measured by them.

        Args:
            metrics: what is measured on them, too.
            needed: something is decided by them.

        Raises:
            TrainingError: metrics of unknown tasks, or without held-out samples.
            DataError: a task that none of them has a label for.
        """
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

    def check_seen(self, history: History) -> None:
        """Refuse a run in which a task had no label; samples that are read by number were looked through before.

        Args:
            history: of the run.

        Raises:
            TrainingError: such a task.
        """
        never = [task for task in self.tasks.tasks if task not in history.losses]
        if never and not self.data.samples.by_number:
            raise TrainingError(
                f"no sample of {self.settings.steps} steps had a label of {never}; expected labels under the tasks' "
                "names, or the tasks frozen"
            )

    def identity(self, weights: Any) -> dict[str, str]:
        """What a checkpoint must be of.

        Args:
            weights: of the losses.
        """
        found = {"weights": network_hash(self.tasks.network, self.frozen), "losses": losses_hash(self.tasks.functions)}
        if self.tasks.teachers is not None:
            found["teachers"] = teachers_hash(self.tasks.teachers.networks)
        if self.data.held_out is not None:
            found["every"] = str(self.settings.every)
        if weights is not None:
            found["weighting"] = str(weights) if isinstance(weights, str | Mapping) else code_hash(weights)
        return found | self.data.identity()


def supervised_run(
    network: nn.Module,
    train: Any,
    losses: Any,
    settings: Settings,
    labels: Any,
    teachers: Mapping[str, nn.Module] | None,
    kinds: Mapping[str, MatchKind] | None,
    validation: Any,
    mix: Mix,
) -> SupervisedRun:
    """Read what `fit` is given.

    Args:
        network, train, losses, settings, labels, teachers, kinds, validation, mix: as `fit` takes them.

    Raises:
        TrainingError: losses or labels that are missing, teachers of tasks with labels.
        DataError: samples that cannot be read.
    """
    functions = losses_by_task(network, losses, teachers)
    data = labelled_data(network, train, labels, tuple(functions), validation, settings, mix)
    judges = None
    if teachers:
        if data.by_task:
            raise TrainingError("teachers and data by task are given; expected samples that all tasks have in common")
        judges = Teachers(teachers, data.samples, progress=settings.progress, kinds=kinds)
        functions |= judges.losses
    compiled = torch.compile(network) if settings.compile else None
    return SupervisedRun(TaskLosses(network, functions, data.labels, compiled, judges), data, settings)


def further_identity(
    network: nn.Module, validation: Any, mix: Mix, kinds: Mapping[str, MatchKind] | None, *, divide_rate: bool
) -> dict[str, str]:
    """What else a checkpoint must be of, where it is not as by default.

    Args:
        network, validation, mix, kinds, divide_rate: as `fit` takes them.
    """
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
    recorded = RecordedOutputs(tasks.teachers) if isinstance(tasks.teachers, Teachers) else tasks.teachers
    return replace(tasks, functions=functions, teachers=recorded)


def _unit(constants: Mapping[str, float], task: str, before: float) -> float:
    """A constant answer's loss, or the loss before training: in millimetres one task would rule all others."""
    known = abs(constants.get(task, 0.0))
    return known if known > 0 else abs(before) if before else 1.0


def _measured(
    training: SupervisedRun, held: HeldOutSamples, tasks: Sequence[str], metrics: Mapping[str, AnyMetric]
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


def _constants(training: SupervisedRun, held: HeldOutSamples, tasks: Sequence[str]) -> dict[str, float]:
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
