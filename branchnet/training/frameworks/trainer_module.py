"""A branched network as Hugging Face's Trainer calls models: inputs and labels by name, a dictionary with `loss`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.call_forms import INPUT_NAMES
from branchnet.data.collation import collate, collate_labels
from branchnet.errors import DataError, TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.frameworks.foreign_batches import combined, read_batches, trained_losses
from branchnet.training.task_losses import Loss
from branchnet.training.weighting.weighting_base import Weighting

LABELS = "labels"


def for_trainer(branched: BranchedNetwork, losses: Mapping[str, Loss], *, weights: Any = None) -> nn.Module:
    """Wrap a branched network for Hugging Face's Trainer.

    The result is called with the inputs by the names that the donors take (`input_ids`, `attention_mask` ...; a
    network of one tensor takes it as `pixel_values`, or another of the usual names) and with labels: `labels={task:
    labels}`, or an argument for each task by its name, as the columns of a data set are. It returns `{"loss": scalar,
    "logits": {task: output}}`, without the loss where there are no labels. Missing labels are as in `branchnet.fit`: a
    task without labels in a batch adds nothing to the loss, and in training is not run.

    `data_collator`, a method of the result, stacks samples of which some lack a label (None, or the column left out).
    For `compute_metrics` and `predict` tell the Trainer which arguments are labels: `TrainingArguments(label_names=
    [...])` with `["labels"]` or the tasks. The Trainer switches between training and evaluation mode on its own; it
    changes `branched` in place, which `branchnet.save` saves.

    Args:
        branched: the network; it is trained in place.
        losses: for each task a function of (output, labels) to a scalar. The parameters of losses that are modules are
            trained, too.
        weights: of the tasks' losses; see `branchnet.training.weighting_of`. FAMO needs the losses again after each
            step, which the Trainer does not offer.

    Returns:
        a module with the attribute `network`, which is `branched`.

    Raises:
        TrainingError: a network that is not branched or can only be evaluated, a loss that is missing, a task with the
            name of an input, weights that cannot be used.

    >>> import torch, branchnet
    >>> tree = branchnet.Tree.shared(["depth", "edges"], 1)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> images = torch.rand(4, 3, 16, 16)
    >>> branched = branchnet.build(tree, networks, example=images[:2], locations=["layer2"], init="donor")
    >>> model = branchnet.training.for_trainer(branched, dict.fromkeys(tree.tasks, torch.nn.L1Loss()))
    >>> outputs = model(pixel_values=images, depth=torch.rand(4, 1, 16, 16))
    >>> outputs["loss"].dim(), sorted(outputs["logits"])
    (0, ['depth', 'edges'])
    """
    made: type[_TrainerModule] = type("TrainerModule", (_TrainerModule,), {"forward": _forward_of(branched)})
    return made(branched, losses, weights)


class _TrainerModule(nn.Module):
    """What `for_trainer` makes; each has a class of its own, as the Trainer reads the arguments off the class."""

    accepts_loss_kwargs = False  # else the Trainer would leave it to the loss to divide by accumulated batches

    def __init__(self, branched: BranchedNetwork, losses: Mapping[str, Loss], weights: Any) -> None:
        super().__init__()
        self.of_tasks = trained_losses(branched, losses, "for_trainer")
        self.network = branched
        self.loss_modules = nn.ModuleList(module for held in self.of_tasks.modules.values() for module in held)
        self.weighting: Weighting | None = None
        if weights is not None:
            from branchnet.training.weighting.named_weightings import weighting_of

            self.weighting = weighting_of(weights, self.of_tasks.tasks, branched)
            if self.weighting.needs_losses_again:
                raise TrainingError(
                    f"weights={weights!r} needs the losses again after each step, which the Trainer does not offer; "
                    "expected another weighting, or training with branchnet.fit"
                )

    def data_collator(self, samples: list[Any]) -> dict[str, Any]:
        """Stack samples by name; a label that only some samples have becomes a list with None for the others.

        Args:
            samples: mappings from names of inputs, and of tasks, to values; or with `labels`, {task: label}.

        Returns:
            a batch, in the form of a sample.

        Raises:
            DataError: samples of another kind, or inputs of different shape.
        """
        form = call_form(self.network)
        if not all(isinstance(sample, Mapping) for sample in samples):
            raise DataError("the samples are not mappings; expected inputs and labels by name")
        known = set(inspect.signature(self.forward).parameters)
        tasks = set(self.network.tasks)
        inputs = [{n: v for n, v in one.items() if n in known - tasks and n != LABELS} for one in samples]
        batch = dict(collate(inputs, form))
        batch |= _without_none(collate_labels([{n: v for n, v in one.items() if n in tasks} for one in samples], form))
        if any(LABELS in one for one in samples):
            batch[LABELS] = _without_none(collate_labels([one.get(LABELS) or {} for one in samples], form))
        return batch

    def run(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the loss and the outputs.

        Args:
            named: inputs and labels.

        Returns:
            `loss`, where there are labels, and `logits` by task.
        """
        tasks = self.network.tasks
        given = {name: value for name, value in named.items() if value is not None}
        labels = {task: given.pop(task) for task in tasks if task in given}
        labels |= _labels(given.pop(LABELS, None), tasks)
        batch = read_batches((_inputs(given, self.network), labels), self.network)
        known = {} if not labels else self.of_tasks.known(batch)
        wanted = [task for task in tasks if task in known] if self.training else list(tasks)
        outputs = self.network(batch.inputs, wanted) if wanted else {}  # type: ignore[union-attr]
        if not labels:
            return {"logits": outputs if outputs else self.network(batch.inputs)}  # type: ignore[union-attr]
        losses = {task: self.of_tasks.loss(task, one.of(outputs[task]), one.values) for task, one in known.items()}
        return {"loss": self._total(losses), "logits": outputs}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        if not losses:  # a loss that changes nothing: the Trainer takes a step all the same
            return torch.zeros((), device=self.of_tasks.device, requires_grad=True)
        return combined(self.weighting if self.training else None, self.network, losses)


def _forward_of(branched: Any) -> Callable[..., dict[str, Any]]:
    """A `forward` whose signature names the inputs and tasks: the Trainer drops columns that it does not name."""

    def forward(self: _TrainerModule, **named: Any) -> dict[str, Any]:
        return self.run(named)

    if isinstance(branched, BranchedNetwork):
        names = branched.interface.names or INPUT_NAMES
        if both := [task for task in branched.tasks if task in (*names, LABELS)]:
            raise TrainingError(
                f"the tasks {both} have names of inputs or labels; expected others, as labels are passed by them"
            )
        arguments = [name for name in (*names, LABELS, *branched.tasks) if name.isidentifier()]
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *(inspect.Parameter(name, keyword, default=None) for name in arguments)]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _inputs(given: Mapping[str, Any], network: BranchedNetwork) -> Any:
    """What the network is called with."""
    if network.interface.form != "tensor":
        return dict(given)
    if len(given) != 1:
        raise DataError(f"the model was called with {list(given)}; expected one input, as pixel_values, and labels")
    return next(iter(given.values()))


def _labels(given: Any, tasks: tuple[str, ...]) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if unknown := [task for task in given if task not in tasks]:
            raise DataError(f"the labels name {unknown}; expected some of {list(tasks)}")
        return {task: labels for task, labels in given.items() if labels is not None}
    if len(tasks) > 1:
        raise DataError(f"the labels are a {type(given).__name__}; expected a mapping by task")
    return {tasks[0]: given}


def _without_none(labels: Any) -> dict[str, Any]:
    return {task: values for task, values in (labels or {}).items() if values is not None}
