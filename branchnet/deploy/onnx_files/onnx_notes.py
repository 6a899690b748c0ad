"""What an ONNX file says next to its operators: metadata of branchnet, none of the exporter's notes on source code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from branchnet.builder.network.task_names import wanted_tasks
from branchnet.errors import BuildError

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

TASKS_KEY = "branchnet.tasks"
"""The metadata under which the tasks stand, as a JSON list."""
LABELS_KEY = "branchnet.labels"
"""The metadata under which the names of classes stand, as a JSON object by task."""
PREPROCESSING_KEY = "branchnet.preprocessing"
"""The metadata under which it is said what inputs must have gone through, as a JSON object."""
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""The exporter's note on the modules that an operator is in; it stays, to tell nodes of the network."""


def metadata_of(
    tasks: Sequence[str], labels: Mapping[str, Sequence[str]] | None, preprocessing: Mapping[str, Any] | None
) -> dict[str, str]:
    """What users say of an exported network, as an ONNX file holds it.

    Args:
        tasks: the exported tasks.
        labels: by task the names of its classes, in the order of the output.
        preprocessing: what inputs must have gone through, as plain data.

    Raises:
        BuildError: labels of unknown tasks, or what JSON cannot hold.
    """
    found = {}
    if labels:
        wanted_tasks(list(labels), tasks)
        found[LABELS_KEY] = _as_json("labels", {task: list(names) for task, names in labels.items()})
    if preprocessing:
        found[PREPROCESSING_KEY] = _as_json("preprocessing", dict(preprocessing))
    return found


def check_labels(labels: Mapping[str, Sequence[str]], outputs: Mapping[str, Tensor]) -> None:
    """Refuse names of classes that are more or fewer than the classes.

    Args:
        labels: by task.
        outputs: of the network, by flat name; a task with several tensors is not looked at.

    Raises:
        BuildError: names the task and both numbers.
    """
    for task, names in labels.items():
        output = outputs.get(task)
        if output is not None and (output.dim() < 2 or output.shape[1] != len(names)):
            raise BuildError(
                f"labels of {task!r} are {len(names)} names, and its output has the shape {tuple(output.shape)}; "
                "expected one name for each entry of dimension 1"
            )


def _as_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise BuildError(
            f"{name} cannot be written as JSON ({error}); expected numbers, text, lists and dicts"
        ) from None


def without_traces(model: ModelProto, keep: Collection[str] = ()) -> None:
    """Take out what the exporter noted on operators and tensors for debugging: paths and lines of source code.

    Args:
        model: the model, which is changed.
        keep: names of the notes that stay.
    """
    graph = model.graph
    for entry in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        kept = [(note.key, note.value) for note in entry.metadata_props if note.key in keep]
        del entry.metadata_props[:]
        for key, value in kept:
            entry.metadata_props.add(key=key, value=value)
        entry.doc_string = ""
