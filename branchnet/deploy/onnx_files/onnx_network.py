"""An ONNX file as a network: one session, and one copy of the weights, for every set of tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchnet.builder.network.call_inputs import check_input, one_input
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.deploy.onnx_files.onnx_notes import LABELS_KEY, PREPROCESSING_KEY, TASKS_KEY
from branchnet.errors import BuildError
from branchnet.stages import Example, flat_example
from branchnet.stages.interface import Interface

Restore = Callable[[Mapping[str, Tensor], Sequence[str]], dict[str, Any]]
"""From tensors by flat name to outputs by task."""


class OnnxNetwork:
    """An ONNX file in ONNX Runtime, called as the network that it was made of.

    Args:
        model: the file, or its content.
        tasks: the tasks, in order; None for those that the file's metadata lists.
        restore: puts tensors by flat name (see `Exported.outputs`) into the form that each task's output has; by
            default a task with several tensors gives a dict of them.
        interface: the form of the inputs, where it is known; calls are checked by it.

    Attributes:
        tasks: the tasks.
        labels: by task the names of its classes, where `export` was given them.
        preprocessing: what inputs must have gone through, where `export` was told.

    Raises:
        BuildError: ONNX Runtime is not installed, or a file that does not say its tasks.
    """

    takes_inputs_as_one = True

    def __init__(
        self,
        model: bytes | Path,
        tasks: Sequence[str] | None = None,
        *,
        restore: Restore | None = None,
        interface: Interface | None = None,
    ) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._wanted = onnxruntime.RunOptions()
        self._wanted.only_execute_path_to_fetches = True
        known = self._session.get_modelmeta().custom_metadata_map
        self.labels: dict[str, list[str]] = json.loads(known.get(LABELS_KEY, "{}"))
        self.preprocessing: dict[str, Any] = json.loads(known.get(PREPROCESSING_KEY, "{}"))
        self.tasks = tuple(tasks) if tasks is not None else self._listed_tasks(model)
        self._task_of = {name: task_of(name, self.tasks) for name in self._outputs}
        self._restore = restore or self._by_task
        self._interface = interface

    def _listed_tasks(self, model: bytes | Path) -> tuple[str, ...]:
        listed = self._session.get_modelmeta().custom_metadata_map.get(TASKS_KEY)
        if listed is None:
            name = "the content" if isinstance(model, bytes) else repr(os.fspath(model))
            raise BuildError(
                f"{name} does not list its tasks under {TASKS_KEY!r}; expected a file that branchnet wrote"
            )
        return tuple(json.loads(listed))

    def __call__(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`, all by default; what no such task needs is not run.

        Args:
            *inputs: as of `BranchedNetwork.forward`: `loaded(x)`, `loaded(x, tasks)`, `loaded(ids, mask)`.
            tasks: those wanted.
            **named: in place of `inputs`, inputs by name: `loaded(**batch)`.

        Returns:
            outputs by task.

        Raises:
            BuildError: unknown tasks, no input, or one of another form than the file takes.
        """
        x, tasks = one_input(inputs, tasks, named, self._interface)
        if self._interface is not None:
            check_input(x, self._interface)
        wanted = wanted_tasks(tasks, self.tasks)
        return self._restore(self.tensors(x, wanted), wanted)

    def tensors(self, x: Example, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Compute the tensors of some tasks by their flat names.

        Args:
            x: inputs, as the network takes them.
            tasks: known tasks.

        Returns:
            the tensors of these tasks.

        Raises:
            BuildError: more, fewer or other inputs than the file takes.
        """
        given = dict(x) if isinstance(x, Mapping) else dict(enumerate(flat_example(x)))
        keys: Sequence[Any] = self._inputs if isinstance(x, Mapping) else range(len(self._inputs))
        if set(given) != set(keys):
            raise BuildError(f"the inputs are {list(given)}; expected {', '.join(self._inputs)}")
        arrays = {name: given[key].numpy(force=True) for name, key in zip(self._inputs, keys, strict=True)}
        needed = [name for name, task in self._task_of.items() if task in tasks]
        values = self._session.run(needed, arrays, self._wanted)
        return {name: torch.from_numpy(array) for name, array in zip(needed, values, strict=True)}

    def of_task(self, found: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """Return those tensors that are of one task, by flat name.

        Args:
            found: what `tensors` returned.
            task: the task.

        Returns:
            its tensors, by the same names.
        """
        return {name: value for name, value in found.items() if self._task_of[name] == task}

    def _by_task(self, found: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Any]:
        outputs: dict[str, Any] = {}
        for task in tasks:
            own = self.of_task(found, task)
            outputs[task] = own.get(task, {name.removeprefix(f"{task}."): value for name, value in own.items()})
        return outputs


def load_onnx(path: str | os.PathLike[str]) -> OnnxNetwork:
    """Load an ONNX file that `export` or `Quantized.save` wrote, to be called as the network is.

    Args:
        path: the file; from a source that you trust.

    Returns:
        what runs it: `loaded(x, tasks=None)` gives outputs by task; a task with several tensors gives a dict of them.

    Raises:
        BuildError: ONNX Runtime is not installed, or a file that does not list its tasks.

    >>> import tempfile, torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor").eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = branchnet.export(branched, x, f"{folder}/model.onnx")
    ...     loaded = branchnet.deploy.load_onnx(exported.model)
    >>> loaded.tasks, list(loaded(x, tasks=["b"]))
    (('a', 'b'), ['b'])
    """
    return OnnxNetwork(Path(path))


def import_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        BuildError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BuildError(f"ONNX needs {error.name}: pip install 'branchnet[export]'") from error
    return onnxruntime


def task_of(name: str, tasks: Sequence[str]) -> str:
    """The task that a flat name is of: the longest one, where `a` and `a.b` are tasks.

    Args:
        name: a name as `flat_name` gives it.
        tasks: all tasks of the network.
    """
    return max((task for task in tasks if name == task or name.startswith(f"{task}.")), key=len, default="")
