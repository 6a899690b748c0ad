"""How far a branched network is from its single-task networks: what is minimised, and what it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from branchnet.builder import BranchedNetwork
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.stages.tracing.input_order import InputOrder, run_tasks
from branchnet.training.held_out_samples import HeldOutSamples
from branchnet.training.matching.feature_matching import FeatureMatching
from branchnet.training.matching.output_forms import applied
from branchnet.training.matching.recorded_outputs import RecordedOutputs
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import network_hash, samples_hash, teachers_hash
from branchnet.training.scope import Scope
from branchnet.training.teachers import Teachers
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

Match: TypeAlias = Literal["outputs", "features", "both"]

EQUAL = 0.01
"""A task's loss on held-out samples that is higher by this than it was counts as equal; a constant answer has 1."""


@dataclass(frozen=True)
class DistilledLosses:
    """A student, its teachers, and how far it is from them.

    Attributes:
        branched: the student.
        teachers: of its tasks.
        tasks: those that are trained.
        settings: of the run.
        held: samples that it is judged by; None where it is not.
        match: what is matched.
        features: of the student and the teachers, where these are matched.
        compiled: what torch.compile made of the student; None where that is not wanted.
        order: lays out the inputs of the student.
    """

    branched: BranchedNetwork
    teachers: Teachers
    tasks: tuple[str, ...]
    settings: Settings
    held: HeldOutSamples | None
    match: Match
    features: FeatureMatching | None = field(init=False)
    compiled: Any = field(init=False)
    order: InputOrder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", torch.compile(self.branched) if self.settings.compile else None)
        object.__setattr__(self, "order", InputOrder(self.branched, partial(run_tasks, tasks=self.tasks)))
        matching = None
        if self.match != "outputs":
            first = next(iter(self.teachers.samples.first(self.settings.batch_size, self.settings.batch_size, seed=0)))
            inputs = self.order.placed(first.inputs, self.device)
            with seeded(self.settings.seed):
                matching = FeatureMatching(self.branched, self.teachers.networks, inputs, self.tasks)
        object.__setattr__(self, "features", matching)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.branched.parameters()).device

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each task's loss of a batch.

        Args:
            batch: of samples to train on.
        """
        with self._plain():
            wanted = self.teachers.outputs(batch, self.tasks, self.device)
        inputs = self.order.placed(batch.inputs, self.device)
        network = self.branched if self.compiled is None else self.compiled
        if self.features is None:
            outputs = network(inputs, self.tasks)
            return self._from_outputs(outputs, wanted)
        with self.features.watching(self.branched, self.tasks) as seen:
            outputs = network(inputs, self.tasks)
        found = {task: self.features.loss(task, features, inputs) for task, features in seen.items()}
        if self.match == "features":
            return found
        losses = self._from_outputs(outputs, wanted)
        return {task: loss + found[task] if task in found else loss for task, loss in losses.items()}

    def _from_outputs(self, outputs: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
        outputs = applied(self.teachers.output_functions, outputs)
        return {task: _named(task, self.teachers.losses[task], outputs[task], wanted[task]) for task in self.tasks}

    def _plain(self) -> Any:
        """Teachers are not run in the student's precision."""
        return torch.autocast(self.device.type, enabled=False) if self.settings.precision != "32" else torch.no_grad()

    def judge(self) -> Judge:
        """The losses of outputs on held-out samples, on which each teacher is run once where memory allows.

        Raises:
            TrainingError: there are no held-out samples.
        """
        if self.held is None:
            raise TrainingError("there are no held-out samples; expected some to judge by")
        judges = RecordedOutputs(self.teachers)
        return Judge(
            self.tasks,
            partial(self._measured, judges),
            self._constants(judges),
            self.held.judged_on,
            lambda task, before: EQUAL,
            lambda task, before: 1.0,
            self.held.not_finite,
        )

    def _measured(self, judges: RecordedOutputs) -> tuple[dict[str, float], dict[str, float]]:
        def loss(task: str, outputs: Mapping[str, Any], wanted: Any) -> Tensor:
            return _named(task, self.teachers.losses[task], outputs[task], wanted)

        with evaluation_mode(self.branched):
            functions = self.teachers.output_functions
            return self._mean(judges, loss, lambda inputs: applied(functions, self.branched(inputs, self.tasks))), {}

    def _constants(self, judges: RecordedOutputs) -> dict[str, float]:
        def loss(task: str, outputs: Mapping[str, Any], wanted: Any) -> Tensor:
            return self.teachers.losses[task].constant(wanted)

        return self._mean(judges, loss, lambda inputs: {})

    def _mean(
        self, judges: RecordedOutputs, loss: Callable[..., Tensor], run: Callable[[Any], Mapping[str, Any]]
    ) -> dict[str, float]:
        """The mean over held-out samples of each task's loss."""
        totals, count = dict.fromkeys(self.tasks, 0.0), 0
        assert self.held is not None
        with torch.no_grad(), seeded(0, self.device):
            for batch in self.held.batches():
                wanted = judges.outputs(batch, self.tasks, self.device)
                outputs = run(self.order.placed(batch.inputs, self.device))
                for task in self.tasks:
                    totals[task] += float(loss(task, outputs, wanted[task])) * len(batch)
                count += len(batch)
        return {task: total / count for task, total in totals.items()}

    def identity(self, samples: Samples, scope: Scope, validation: Source | None) -> dict[str, str]:
        """What a checkpoint must be of.

        Args:
            samples: to train on.
            scope: what is trained.
            validation: held-out samples that were given.
        """
        found = {"weights": network_hash(self.branched, self.branched.frozen), "samples": samples_hash(samples)}
        found["teachers"] = teachers_hash({task: self.teachers.networks[task] for task in self.tasks})
        found |= {} if scope == "all" else {"scope": scope}
        found |= {} if self.match == "outputs" else {"match": self.match}
        if self.teachers.kinds or self.teachers.temperature != 1.0:
            found["kinds"] = f"{sorted(self.teachers.kinds.items())} {self.teachers.temperature}"
        if self.teachers.output_functions:
            functions = sorted(self.teachers.output_functions.items())
            found["outputs"] = str([(task, code_hash(function)) for task, function in functions])
        if validation is not None:
            held_out = read_samples(validation, call_form(self.branched))
            found |= {"validation": samples_hash(held_out), "every": str(self.settings.every)}
        return found


def _named(task: str, loss: Callable[[Any, Any], Tensor], output: Any, wanted: Any) -> Tensor:
    try:
        return loss(output, wanted)
    except TrainingError as error:
        raise TrainingError(f"task {task!r}: {error}") from error
