"""One ONNX file for each task of a network that computes one task at a time, with the weights once next to them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from branchnet.builder import BranchedNetwork, SharingNetwork
from branchnet.builder.network.surgery import keep_tasks
from branchnet.deploy.exporting import compared_outputs, write_model
from branchnet.deploy.flat_outputs import named_tensors
from branchnet.deploy.format_writers import Dynamic
from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork
from branchnet.deploy.onnx_files.subset_models import SharedTensors
from branchnet.errors import BuildError
from branchnet.stages import Example

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTS = "weights.bin"


def onnx_task_files(
    network: SharingNetwork, example: Example, folder: str | os.PathLike[str], *, dynamic: Dynamic = True
) -> dict[str, Path]:
    """Write one ONNX file for each task of a `SharingNetwork`; all read their weights from one file next to them.

    `FOLDER/TASK.onnx` is a task's path and `FOLDER/weights.bin` holds every weight once, as external data of ONNX, so
    that the disk holds about what the network does; runtimes that map the file into memory share its pages. Every file
    is loaded by ONNX Runtime and compared with the network before the folder is put in place.

    Args:
        network: the network, in evaluation mode.
        example: inputs; everything but the batch size is fixed by them.
        folder: the folder to write, which must not exist.
        dynamic: see `branchnet.export`.

    Returns:
        the files by task.

    Raises:
        BuildError: another network, a folder that exists, tasks that cannot name files, or a network that cannot be
            exported; nothing is left behind.

    >>> import tempfile, torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> sharing = branchnet.Sharing(["a", "b"], [[["a", "b"]]])
    >>> network = branchnet.build(sharing, networks, example=x, locations=["0"]).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = branchnet.deploy.onnx_task_files(network, x, f"{folder}/models")
    ...     outputs = branchnet.deploy.load_onnx(made["b"])(x)
    >>> torch.allclose(outputs["b"], network(x, task="b"), atol=1e-6)
    True
    """
    target = Path(folder)
    _check(network, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    paths = network.separate_paths()
    try:
        with (made / WEIGHTS).open("wb") as file:
            shared = SharedTensors(file)
            for task in network.tasks:
                path = keep_tasks(paths, [task])
                _share(_written(path, example, made / f"{task}.onnx", dynamic), made / f"{task}.onnx", shared)
                _compare(made / f"{task}.onnx", path, example)
        made.chmod(0o755)
        made.replace(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return {task: target / f"{task}.onnx" for task in network.tasks}


def _check(network: SharingNetwork, target: Path) -> None:
    if not isinstance(network, SharingNetwork):
        raise BuildError(
            f"the network is a {type(network).__name__}; expected a SharingNetwork; branchnet.export and "
            "branchnet.deploy.triton_repository write branched networks"
        )
    if network.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call network.eval() first")
    if target.exists():
        raise BuildError(f"{str(target)!r} exists; expected the name of a new folder")
    for task in network.tasks:
        if Path(task).name != task or "\\" in task:
            raise BuildError(f"the task {task!r} cannot name a file; expected one that can; rename it")


def _written(path: BranchedNetwork, example: Example, file: Path, dynamic: Dynamic) -> ModelProto:
    """The checked model of one task."""
    write_model(file, path, example, "onnx", dynamic=dynamic)
    import onnx

    model: Any = onnx.load(file)
    return model  # type: ignore[no-any-return]


def _share(model: ModelProto, file: Path, shared: SharedTensors) -> None:
    shared.add(model)
    shared.refer(model, WEIGHTS)
    file.write_bytes(model.SerializeToString())


def _compare(file: Path, path: BranchedNetwork, example: Example) -> None:
    """Raise BuildError where the file with its weights outside does not give what the path does."""
    with torch.no_grad():
        expected = named_tensors(path(example))
    compared_outputs([expected], [OnnxNetwork(file).tensors(example, path.tasks)])
