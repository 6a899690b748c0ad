"""A model repository for the Triton Inference Server: one model for each set of tasks, weights once on disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from branchnet.builder import BranchedNetwork, GroupedNetworks
from branchnet.builder.network.grouped_networks import as_one_network
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.deploy.exporting import compared_outputs, resized, write_model
from branchnet.deploy.flat_outputs import named_tensors
from branchnet.deploy.format_writers import Dynamic, batch_size
from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork, task_of
from branchnet.deploy.onnx_files.onnx_notes import TASKS_KEY
from branchnet.deploy.onnx_files.subset_models import SharedTensors, subset_model
from branchnet.errors import BuildError
from branchnet.inference import prepare
from branchnet.stages import Example
from branchnet.utils.files import write_text

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

WEIGHTS = "weights.bin"
VERSION = "1"
_TYPES = {
    1: "TYPE_FP32", 2: "TYPE_UINT8", 3: "TYPE_INT8", 4: "TYPE_UINT16", 5: "TYPE_INT16", 6: "TYPE_INT32",
    7: "TYPE_INT64", 9: "TYPE_BOOL", 10: "TYPE_FP16", 11: "TYPE_FP64", 12: "TYPE_UINT32", 13: "TYPE_UINT64",
    16: "TYPE_BF16",
}  # fmt: skip


def triton_repository(
    network: BranchedNetwork | GroupedNetworks,
    example: Example,
    folder: str | os.PathLike[str],
    *,
    models: Mapping[str, Sequence[str]] | None = None,
    max_batch_size: int = 8,
    dynamic: Dynamic = True,
) -> tuple[Path, ...]:
    """Write a model repository for the Triton Inference Server, with one ONNX model for each set of tasks.

    `FOLDER/NAME/config.pbtxt` describes a model and `FOLDER/NAME/1/model.onnx` is it. All read their weights from
    `weights.bin` next to them, which is one file on disk with several names (hard links; copies where the file system
    has none), so that servers that map it hold its pages once. Every model is loaded by ONNX Runtime and compared with
    the network before the folder is put in place.

    Args:
        network: the network, in evaluation mode.
        example: inputs; everything but the batch size is fixed by them.
        folder: the repository, which must not exist.
        models: by name of a model its tasks; by default one model for each task and `all`.
        max_batch_size: the largest batch that the server puts together; 0 for models that take inputs as they come, and
            where an input or output has no batch dimension.
        dynamic: see `branchnet.export`; False writes models of the example's own batch size, with `max_batch_size` 0.

    Returns:
        the folders of the models.

    Raises:
        BuildError: a folder that exists, unknown tasks, names that are no names of folders, a network that cannot be
            exported, or a model with other outputs than the network's; nothing is left behind.

    >>> import tempfile, torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor").eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = branchnet.deploy.triton_repository(branched, x, f"{folder}/models")
    ...     names = [path.name for path in made]
    >>> names
    ['a', 'b', 'all']
    """
    one, target = as_one_network(network), Path(folder)
    chosen = dict(models) if models is not None else {task: (task,) for task in one.tasks} | {"all": one.tasks}
    _check(one, target, chosen, max_batch_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        model = _whole_model(one, example, made, dynamic)
        with (made / WEIGHTS).open("wb") as file:
            shared = SharedTensors(file)
            shared.add(model)
        for name, tasks in chosen.items():
            own = wanted_tasks(tasks, one.tasks)
            outputs = [output.name for output in model.graph.output if task_of(output.name, one.tasks) in own]
            part = subset_model(model, outputs)
            next(note for note in part.metadata_props if note.key == TASKS_KEY).value = json.dumps(own)
            place = made / name / VERSION
            place.mkdir(parents=True)
            _link(made / WEIGHTS, place / WEIGHTS)
            write_text(place.parent / "config.pbtxt", model_config(name, part, max_batch_size if dynamic else 0))
            shared.refer(part, WEIGHTS)
            (place / "model.onnx").write_bytes(part.SerializeToString())
            _compare(place / "model.onnx", own, one, example, dynamic)
        (made / WEIGHTS).unlink()
        made.chmod(0o755)
        made.replace(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return tuple(target / name for name in chosen)


def model_config(name: str, model: ModelProto, max_batch_size: int) -> str:
    """The text of `config.pbtxt`, as Triton's model_config.proto describes it.

    Args:
        name: the model's.
        model: what it is.
        max_batch_size: as `triton_repository` takes it.
    """
    values = [*model.graph.input, *model.graph.output]
    if not all(_dims(value)[:1] == [-1] for value in values):
        max_batch_size = 0
    lines = [f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch_size}"]
    for field, entries in (("input", model.graph.input), ("output", model.graph.output)):
        for value in entries:
            dims = _dims(value)[1:] if max_batch_size else _dims(value)
            # A value of one number for each sample has no dimension left, which Triton's dims cannot say.
            shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ]\n  reshape { shape: [ ] }"
            kind = _TYPES[value.type.tensor_type.elem_type]
            lines += [f"{field} {{", f"  name: {json.dumps(value.name, ensure_ascii=False)}", f"  data_type: {kind}"]
            lines += [f"  {line}" for line in [shape]] + ["}"]
    if max_batch_size:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _dims(value: ValueInfoProto) -> list[int]:
    """The lengths of a tensor's dimensions, -1 for free ones."""
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]


def _check(network: BranchedNetwork, target: Path, models: Mapping[str, Sequence[str]], max_batch_size: int) -> None:
    if network.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call network.eval() first")
    if target.exists():
        raise BuildError(f"{str(target)!r} exists; expected the name of a new folder")
    if not models:
        raise BuildError("models is empty; expected tasks by name of the model")
    for name, tasks in models.items():
        wanted_tasks(tasks, network.tasks)
        if not name or name in (".", "..", WEIGHTS) or Path(name).name != name or "\\" in name:
            raise BuildError(f"the model name {name!r} cannot name a folder; expected one that can; pass models=")
    if max_batch_size < 0:
        raise BuildError(f"max_batch_size={max_batch_size}; expected 0 or more")


def _whole_model(network: BranchedNetwork, example: Example, folder: Path, dynamic: Dynamic) -> ModelProto:
    """The checked model of all tasks."""
    file = folder / "whole.onnx"
    write_model(file, prepare(network, example=example), example, "onnx", dynamic=dynamic, original=network)
    import onnx

    model: Any = onnx.load(file)
    file.unlink()
    return model  # type: ignore[no-any-return]


def _link(source: Path, link: Path) -> None:
    try:
        link.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, link)


def _compare(file: Path, tasks: Sequence[str], network: BranchedNetwork, example: Example, dynamic: Dynamic) -> None:
    loaded = OnnxNetwork(file)
    if loaded.tasks != tuple(tasks):
        raise BuildError(f"{file.parent.parent.name!r} lists the tasks {loaded.tasks}; expected {tuple(tasks)}")
    for size in (1, batch_size(example)) if dynamic else (batch_size(example),):
        inputs = resized(example, size)
        with torch.no_grad():
            expected = named_tensors(network(inputs, tasks=list(tasks)))
        compared_outputs([expected], [loaded.tensors(inputs, tasks)])
