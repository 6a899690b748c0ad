"""The losses of a network's tasks on a batch of labels, some of which are missing.

`fit` minimises them, and so do the modules for other frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.collation import moved
from branchnet.data.samples import Batch
from branchnet.errors import TrainingError
from branchnet.stages import call
from branchnet.stages.tracing.input_order import InputOrder, run_tasks
from branchnet.training.label_losses.counted_labels import counted_labels
from branchnet.training.labels import KnownLabels, known_labels
from branchnet.training.matching.recorded_outputs import RecordedOutputs
from branchnet.training.optimization.groups import Group, Rate, node_groups, trained_tasks
from branchnet.training.optimization.loss_parameters import check_losses, loss_modules, loss_parameters
from branchnet.training.teachers import Teachers

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""From outputs and labels to a scalar."""
Batches: TypeAlias = Batch | Mapping[str, Batch]
"""A batch, or a batch for each task."""


@dataclass(frozen=True)
class TaskLosses:
    """A network and the losses of its tasks.

    Attributes:
        network: branched, or a network of one task.
        functions: for each task a function of (output, labels).
        labels: for each task the labels of all samples, where they are not in the batches.
        compiled: what torch.compile made of the network, to run in training; None for none.
        teachers: networks of tasks that learn outputs; their functions compare these.
        order: lays out the inputs of the network.
    """

    network: nn.Module
    functions: Mapping[str, Loss]
    labels: Mapping[str, Any] | None = None
    compiled: Any = None
    teachers: Teachers | RecordedOutputs | None = None
    order: InputOrder = field(init=False)

    def __post_init__(self) -> None:
        branched = isinstance(self.network, BranchedNetwork)
        run = partial(run_tasks, tasks=self.tasks) if branched else call
        object.__setattr__(self, "order", InputOrder(self.network, run))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a loss."""
        return tuple(self.functions)

    @property
    def taught(self) -> tuple[str, ...]:
        """The tasks that learn from a network."""
        return () if self.teachers is None else self.teachers.tasks

    @property
    def modules(self) -> dict[str, list[nn.Module]]:
        """The losses that are modules, by task."""
        return loss_modules(self.functions)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def groups(self, learning_rate: Rate, divided: bool = False) -> list[Group]:
        """The parameters of the network by node, and those of the losses.

        Args:
            learning_rate: one rate, or in a branched network a function of the node.
            divided: divide the rate of a node by the number of tasks that it serves.

        Raises:
            TrainingError: a function and a network that is not branched, a rate that is none.
        """
        if isinstance(self.network, BranchedNetwork):
            groups = node_groups(self.network, learning_rate, divided=divided)
        elif callable(learning_rate):
            raise TrainingError(
                "learning_rate is a function of a node and the network is not branched; expected a number"
            )
        else:
            groups = [Group([p for p in self.network.parameters() if p.requires_grad], learning_rate)]
        return groups + _loss_groups(self.network, self.modules, learning_rate, groups)

    def known(self, batch: Batches) -> dict[str, KnownLabels]:
        """The labels that are there, by task.

        Args:
            batch: with labels, unless all were given apart.
        """
        if isinstance(batch, Mapping):
            return {
                task: label for task, one in batch.items() for task, label in known_labels(one, None, [task]).items()
            }
        labelled = [task for task in self.tasks if task not in self.taught]
        return known_labels(batch, self.labels if batch.labels is None else None, labelled) if labelled else {}

    def weights(self, batch: Batches) -> dict[str, float]:
        """How many labels the mean loss of each task is over, pixels with one where the loss counts these.

        Args:
            batch: as for `known`.
        """
        known = self.known(batch)
        weights = {task: counted_labels(self.functions[task], one.values, one.count) for task, one in known.items()}
        return weights | dict.fromkeys(self.taught, float(len(batch)))

    def losses(self, batch: Batches) -> dict[str, Tensor]:
        """Each task's mean loss over the samples with a label; a task without any in the batch is not run.

        Args:
            batch: as for `known`.

        Raises:
            TrainingError: a loss that is no scalar.
        """
        run = self._run(batch, self.tasks)
        return {
            task: self.loss(task, output, moved(known.values, self.device)) for task, (output, known) in run.items()
        }

    def loss(self, task: str, output: Any, labels: Any) -> Tensor:
        """A task's loss.

        Args:
            task: one of `tasks`.
            output: of the samples with a label.
            labels: theirs.

        Raises:
            TrainingError: it is no scalar.
        """
        loss = self.functions[task](output, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainingError(
                f"the loss of {task!r} gave {found}; expected a scalar tensor, as reduction='mean' gives"
            )
        return loss.reshape(())

    def judged(self, batch: Batches, tasks: Sequence[str]) -> dict[str, tuple[Any, Any, float]]:
        """Outputs, labels and how many these are, as `weights` counts them, of the samples with a label.

        Args:
            batch: as for `known`.
            tasks: the tasks wanted.
        """
        found = {}
        for task, (output, known) in self._run(batch, tasks).items():
            weight = float(known.count)
            if task not in self.taught:
                weight = counted_labels(self.functions[task], known.values, known.count)
            found[task] = output, moved(known.values, self.device), weight
        return found

    def _run(self, batch: Batches, tasks: Sequence[str]) -> dict[str, tuple[Any, KnownLabels]]:
        """The outputs of the samples with a label, and their labels, of tasks that have any."""
        known = {task: labels for task, labels in self.known(batch).items() if task in tasks}
        if self.teachers is not None and isinstance(batch, Batch):
            taught = self.teachers.outputs(batch, self.taught, self.device)
            known |= {task: KnownLabels(output, None, len(batch)) for task, output in taught.items() if task in tasks}
        outputs = self._outputs(batch, tuple(known)) if known else {}
        return {task: (labels.of(outputs[task]), labels) for task, labels in known.items()}

    def _outputs(self, batch: Batches, tasks: tuple[str, ...]) -> dict[str, Any]:
        network = self._called()
        if isinstance(batch, Mapping):
            found = {}
            for task in tasks:
                found[task] = network(self.order.placed(batch[task].inputs, self.device), (task,))[task]
            return found
        inputs = self.order.placed(batch.inputs, self.device)
        if isinstance(self.network, BranchedNetwork):
            return dict(network(inputs, tasks))
        return {"loss": call(network, inputs)}

    def _called(self) -> Any:
        """The network, or in training what torch.compile makes of it."""
        return self.compiled if self.compiled is not None and self.network.training else self.network


def losses_by_task(network: nn.Module, losses: Any, teachers: Mapping[str, nn.Module] | None = None) -> dict[str, Loss]:
    """The loss of each task that is trained.

    Args:
        network: a branched network, or one of a single task, which is called `loss`.
        losses: functions by task, or of a single task the function.
        teachers: networks of tasks that need no loss.

    Raises:
        TrainingError: another form, a task without a loss, or teachers of other tasks.
    """
    teachers = teachers or {}
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
