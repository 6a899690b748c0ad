"""What outputs lose by a user's own losses and labels, where 0 is the own network's loss and 1 a constant answer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchnet.affinity.networks import Family
from branchnet.affinity.probes import Probe, on_device
from branchnet.data.call_forms import CallForm
from branchnet.data.collation import as_labels, gather, length, moved
from branchnet.errors import AffinityError
from branchnet.stages import call
from branchnet.stitching.output_distances import OutputKind
from branchnet.stitching.probe_division import chosen_inputs
from branchnet.utils.installed_torch.torch_internals import pytree

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Sums: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledTask:
    """A task's loss, and what it is for the task's own network and for a constant answer.

    Attributes:
        task: its name.
        loss: a function of (output, labels).
        labels: of the inputs that judge.
        scale: the loss of a constant answer less that of the own network, means over the inputs.
        own: the own network's loss for each input; NaN where no label is known.
    """

    task: str
    loss: Loss
    labels: Any
    scale: float
    own: Sums

    def subset(self, rows: Sequence[int]) -> LabelledTask:
        """Keep some of the inputs.

        Args:
            rows: their places among the inputs that judge.

        Returns:
            the task, with the same scale.
        """
        chosen = torch.tensor(rows)
        return LabelledTask(self.task, self.loss, gather(self.labels, chosen), self.scale, self.own[list(rows)])


@dataclass
class LabelledDistance:
    """The loss of outputs, added up over batches in the order of the task's labels.

    Attributes:
        judge: the task.
        found: losses so far, one for each input.
    """

    judge: LabelledTask
    found: list[float] = field(default_factory=list)

    def prepared(self, own: Any) -> Any:
        """The own output as it is."""
        return own

    def add(self, found: Any, own: Any) -> None:
        """Add a batch.

        Args:
            found: the output to judge.
            own: the network's own output for the same inputs, of which nothing is needed.
        """
        self.found += _losses(self.judge.task, self.judge.loss, found, self.judge.labels, len(self.found))

    def value(self, weights: Sums | None = None) -> float:
        """The loss over all inputs.

        Args:
            weights: how often each input counts, (inputs,); None for once.

        Returns:
            0 where it is that of the own network or less, 1 where it is that of a constant answer; infinite where it is
            not finite.
        """
        known = ~np.isnan(self.judge.own)
        more = np.asarray(self.found)[known] - self.judge.own[known]
        if not np.isfinite(more).all():
            return float("inf")
        counted = None if weights is None or not weights[known].any() else weights[known]
        return max(0.0, float(np.average(more, weights=counted)) / self.judge.scale)


def labelled_tasks(
    family: Family,
    probe: Probe,
    judged: Sequence[int],
    losses: Mapping[str, Loss],
    labels: Mapping[str, Any],
    kinds: Mapping[str, OutputKind],
    device: torch.device,
) -> dict[str, LabelledTask]:
    """Run the own networks of tasks with losses on the inputs that judge.

    The constant answer is the mean of the own outputs for each channel; of classifiers the logarithm of the mean
    distribution.

    Args:
        family: the networks.
        probe: the inputs.
        judged: numbers of the inputs that judge.
        losses: for some tasks a function of (output, labels).
        labels: for these tasks K labels; an input does not count whose label is missing, so that the own network's
            loss on it is NaN.
        kinds: which tasks are classifiers.
        device: where the networks are.

    Returns:
        those tasks by name.

    Raises:
        AffinityError: a loss that is not a finite number, or not lower for the own network than for a constant answer;
            no known label at all.
    """
    members = {member.task: member.network for member in family.members if member.task in losses}
    wanted = {
        task: moved(gather(as_labels(labels[task], CallForm()), torch.tensor(judged)), device) for task in members
    }
    own: dict[str, list[float]] = {task: [] for task in members}
    means = {task: _MeanOutput(kinds.get(task) == "classification") for task in members}
    for batch in chosen_inputs(probe.batches("judging stitches"), judged) if members else ():
        for task, network in members.items():
            output = call(network, on_device(batch, device))
            means[task].add(output, length(batch))
            own[task] += _losses(task, losses[task], output, wanted[task], len(own[task]))
    found = {}
    for task in members:
        if np.isnan(own[task]).all():
            raise AffinityError(
                f"the loss of task {task!r} is NaN for its own network on every input that judges; expected some with "
                "a known label and a finite output"
            )
        answer = means[task].answer(len(judged))
        constant = _losses(task, losses[task], answer, wanted[task], 0)
        known = ~np.isnan(own[task])
        of_own, of_constant = float(np.asarray(own[task])[known].mean()), float(np.asarray(constant)[known].mean())
        scale = of_constant - of_own
        if not (math.isfinite(scale) and scale > 0):
            raise AffinityError(
                f"the loss of task {task!r} is {of_own:.4g} for its own network, and for a constant answer "
                f"{of_constant:.4g}; expected a lower one for the own network, both finite: labels in the order "
                "of the probe, and a loss that is lower where outputs are better"
            )
        found[task] = LabelledTask(task, losses[task], wanted[task], scale, np.asarray(own[task]))
    return found


def _losses(task: str, loss: Loss, output: Any, labels: Any, start: int) -> list[float]:
    """The loss of each input alone, so that any resampling of them follows by averaging."""
    found = []
    for row in range(_count(output)):
        value = loss(_rows(output, slice(row, row + 1)), gather(labels, slice(start + row, start + row + 1)))
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise AffinityError(f"the loss of task {task!r} is {given}; expected a scalar tensor")
        found.append(float(value))
    return found


def _count(output: Any) -> int:
    return len(next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim()))


def _rows(output: Any, rows: slice) -> Any:
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() else leaf, output)


class _MeanOutput:
    """The mean of outputs for each channel, dimension 1, over inputs and positions.

    Args:
        classifies: average distributions instead of the logits that they are the softmax of.
    """

    def __init__(self, classifies: bool) -> None:
        self._classifies = classifies
        self._inputs = 0
        self._sums: list[Any] = []
        self._example: Any = None

    def add(self, output: Any, inputs: int) -> None:
        """Add a batch."""
        leaves = [leaf for leaf in pytree.tree_leaves(output) if _averaged(leaf)]
        values = [leaf.double().softmax(1) if self._classifies else leaf.double() for leaf in leaves]
        means = [
            value.mean([d for d in range(value.dim()) if d != 1], keepdim=True)
            if value.dim() > 1
            else value.mean(0, True)
            for value in values
        ]
        self._example = _rows(output, slice(0, 1)) if self._example is None else self._example
        self._sums = [
            mean * inputs + before for mean, before in zip(means, self._sums or [0] * len(means), strict=True)
        ]
        self._inputs += inputs

    def answer(self, count: int) -> Any:
        """The same output for so many inputs."""
        sums = iter(self._sums)

        def repeated(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim():
                return leaf
            if _averaged(leaf):
                mean = next(sums) / self._inputs
                leaf = (mean.clamp_min(1e-12).log() if self._classifies else mean).to(leaf.dtype).expand(leaf.shape)
            return leaf.expand(count, *leaf.shape[1:])

        return pytree.tree_map(repeated, self._example)


def _averaged(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0


def check_losses(
    tasks: Iterable[str], inputs: int, losses: Mapping[str, Loss] | None, labels: Mapping[str, Any] | None
) -> None:
    """Check that losses and labels are of the tasks, and that there are as many labels as inputs.

    Args:
        tasks: the tasks of the networks.
        inputs: K.
        losses: as the user gives them.
        labels: as the user gives them.

    Raises:
        AffinityError: unknown tasks, losses without labels, labels without losses, or of another number than inputs.
    """
    known = list(tasks)
    for name, given in (("losses", losses or {}), ("labels", labels or {})):
        for task in given:
            if task not in known:
                raise AffinityError(f"{name} names the unknown task {task!r}; expected some of {known}")
    alone = sorted(set(losses or {}) ^ set(labels or {}))
    if alone:
        raise AffinityError(f"tasks {alone} have a loss or labels alone; expected both, or neither")
    for task, of_task in (labels or {}).items():
        count = length(as_labels(of_task, CallForm()))
        if count != inputs:
            raise AffinityError(f"task {task!r} has {count} labels; expected {inputs}, one for each input of the probe")
