"""The forms of a student's and its teachers' outputs, compared before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.stages.tracing.trial import trial
from branchnet.stitching.output_distances import float_leaves
from branchnet.utils.installed_torch.torch_internals import pytree
from branchnet.utils.modes import mode_of

OutputFunctions: TypeAlias = "Mapping[str, Callable[[Any], Any]]"
"""By task what is made of the outputs of both sides before they are compared."""

_LONGEST = 240
_REMEDY = (
    "expected one form: give the networks of branchnet.raw_heads to split_all and as teachers, or "
    "outputs={{{task!r}: function}} that makes one form of both"
)


def applied(outputs: OutputFunctions, found: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by task, passed through the functions of those tasks that have one."""
    return {task: outputs[task](output) if task in outputs else output for task, output in found.items()}


def described_form(output: Any) -> str:
    """An output with shapes in place of its tensors, shortened where it is long."""
    shapes = pytree.tree_map(
        lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__, output
    )
    text = str(shapes)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def differing_form(output: Any, wanted: Any) -> bool:
    """Whether two outputs cannot be compared tensor by tensor."""
    return [leaf.shape for leaf in float_leaves(output)] != [leaf.shape for leaf in float_leaves(wanted)]


def check_forms(
    network: nn.Module,
    run: Callable[[nn.Module], Mapping[str, Any]],
    wanted: Mapping[str, Any],
    *,
    modes: Sequence[bool | None] = (None, False),
) -> None:
    """Refuse outputs of a student that differ in form from its teachers'.

    Args:
        network: the student, in the mode that it is trained in. It is left as it is: a copy of its structure is run,
            and values that this writes to its tensors are restored.
        run: from such a copy to its outputs by task.
        wanted: the teachers' outputs by task.
        modes: in which modes it is run: training, evaluation, or None for those of its modules.

    Raises:
        TrainingError: shows both forms.
    """
    for training in modes:
        with trial(network) as copy, torch.no_grad():
            if training is None:
                found = run(copy)
            else:
                with mode_of(copy, training=training):
                    found = run(copy)
        for task, output in wanted.items():
            if differing_form(found[task], output):
                mode = "evaluation" if training is False else "training"
                raise TrainingError(
                    f"task {task!r}: in {mode} mode the network to train returns {described_form(found[task])} and "
                    f"its single-task network, as a teacher, {described_form(output)}; " + _REMEDY.format(task=task)
                )


def check_same_form(task: str, parts: Sequence[Any]) -> None:
    """Refuse a teacher whose outputs differ in form from batch to batch, such as lists of detections.

    Raises:
        TrainingError: shows both forms.
    """
    first = [leaf.shape[1:] for leaf in float_leaves(parts[0])]
    for part in parts[1:]:
        if [leaf.shape[1:] for leaf in float_leaves(part)] != first:
            raise TrainingError(
                f"the output of {task!r} is {described_form(parts[0])} for one batch and {described_form(part)} for "
                "another; " + _REMEDY.format(task=task)
            )
