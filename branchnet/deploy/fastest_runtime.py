"""The fastest way to run a network on this device, found by running all of them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchnet.builder import BranchedNetwork, GroupedNetworks, SharingNetwork
from branchnet.builder.network.call_inputs import check_input, one_input
from branchnet.builder.network.grouped_networks import as_one_network
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.deploy.exporting import compared_outputs, write_model
from branchnet.deploy.flat_outputs import FlatOutputs, named_tensors, restoring
from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork
from branchnet.deploy.saving import load
from branchnet.errors import BuildError, DataError
from branchnet.inference import compare_latency, prepare
from branchnet.inference import compile as compile_network
from branchnet.inference.latency import Latency
from branchnet.inference.torch_compile import device_of, map_input
from branchnet.stages import Example, flat_example
from branchnet.stages.interface import Interface
from branchnet.utils.files import write_text
from branchnet.utils.installed_torch.devices import usable_device
from branchnet.utils.tensor_digest import checksum

BACKENDS = ("eager", "compiled", "onnxruntime", "aoti")
ROUNDS = 15
KEPT = "runtime.json"
Subset = tuple[str, ...]
Run = Callable[[Any, Subset], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Runtime:
    """A network that runs in the fastest way; called as the network is.

    Attributes:
        backend: which one that is: `eager`, `compiled` (torch.compile), `onnxruntime` or `aoti` (AOTInductor).
        tasks: the network's tasks.
        milliseconds: by backend the median of one call on the example.
        left_out: by backend why it was not measured: not installed, or outputs that differ from the network's.
    """

    backend: str
    tasks: tuple[str, ...]
    milliseconds: Mapping[str, float]
    left_out: Mapping[str, str]
    _run: Run
    _interface: Interface

    def __call__(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`, all by default.

        Args:
            *inputs: as of `BranchedNetwork.forward`: `fast(x)`, `fast(x, tasks)`, `fast(ids, mask)`.
            tasks: those wanted; what no such task needs is not run, but by `aoti` it is.
            **named: in place of `inputs`, inputs by name: `fast(**batch)`.

        Returns:
            outputs by task.

        Raises:
            BuildError: unknown tasks, no input, or one of another form than the network takes.
        """
        x, tasks = one_input(inputs, tasks, named, self._interface)
        check_input(x, self._interface)
        with torch.no_grad():
            return self._run(x, wanted_tasks(tasks, self.tasks))

    def __str__(self) -> str:
        """What was measured, and what was not."""
        times = [f"{name} {ms:.2f} ms" for name, ms in sorted(self.milliseconds.items(), key=lambda item: item[1])]
        return "\n".join([", ".join(times), *(f"{name}: {reason}" for name, reason in self.left_out.items())])


def runtime(
    network: BranchedNetwork | GroupedNetworks | str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    example: Example | None = None,
    backends: Sequence[str] = BACKENDS,
    folder: str | os.PathLike[str] | None = None,
) -> Runtime:
    """Run a network in every way that this machine has, check the outputs, and take the fastest.

    Each backend's outputs must equal those of the network within the tolerance of `export` (1e-4 of the largest value
    in float32); one that fails is left out, and `left_out` says why. Latencies are measured in turns on the example.
    With a folder, what was measured is kept there, and the next call with the same weights, inputs, threads and version
    of torch makes the fastest at once. Exported files are not kept: they would be code that is loaded unchecked.

    Args:
        network: the network in evaluation mode, or a folder that `save` wrote.
        device: where it shall run.
        example: inputs of the size to expect; by default random ones of the form that the network was split with.
        backends: those to try.
        folder: for `runtime.json`; of a network that is loaded its own folder.

    Returns:
        what runs it, with the calling convention of the network: `fast(x, tasks=None)`.

    Raises:
        BuildError: a network in training mode, an unknown backend, or none that can run the network.
        DataError: a device that cannot be used.
        SpecError, CheckpointError: a folder that cannot be loaded.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor").eval()
    >>> fast = branchnet.runtime(branched, example=x, backends=["eager", "onnxruntime"])
    >>> torch.allclose(fast(x, tasks=["b"])["b"], branched(x)["b"], atol=1e-6)
    True
    """
    if unknown := [name for name in backends if name not in BACKENDS] or ([] if backends else ["none"]):
        raise BuildError(f"unknown backends: {unknown}; expected some of {', '.join(BACKENDS)}")
    device = usable_device(device)
    if not isinstance(network, BranchedNetwork | GroupedNetworks):
        folder = network if folder is None else folder
        loaded = load(network)
        if isinstance(loaded, SharingNetwork):
            raise BuildError(
                f"{os.fspath(network)!r} holds a network in memory mode; expected a branched one; "
                "run what branchnet.load(folder) returns as it is"
            )
        network = loaded
    if network.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call network.eval() first")
    one = as_one_network(network).to(device)
    inputs: Any = one.interface.random() if example is None else example
    inputs = map_input(lambda tensor: tensor.to(device), inputs)
    file = None if folder is None else Path(folder) / KEPT
    key = _key(one, inputs, backends)
    known = None if file is None else _read(file, key)
    runs, left_out = _made(one, inputs, backends if known is None else [known["backend"]])
    if known is not None and known["backend"] in runs:
        name = known["backend"]
        return Runtime(name, one.tasks, known["milliseconds"], known["left_out"], runs[name], one.interface)
    if not runs:
        raise BuildError(f"no backend can run the network: {left_out}; expected 'eager' among the backends")
    functions = {name: (lambda *args, run=run, **kwargs: run(inputs, one.tasks)) for name, run in runs.items()}
    found: dict[str, Latency] = compare_latency(functions, inputs, repeats=ROUNDS)
    best = min(found, key=lambda name: found[name].median)
    milliseconds = {name: 1000 * latency.median for name, latency in found.items()}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {"key": key, "backend": best, "milliseconds": milliseconds, "left_out": left_out}
        write_text(file, json.dumps(record, indent=1) + "\n")
    return Runtime(best, one.tasks, milliseconds, left_out, runs[best], one.interface)


def _made(network: BranchedNetwork, inputs: Any, backends: Sequence[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """By backend what runs the network and gives its outputs; of the others why not."""
    runs: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    with torch.no_grad():
        expected = FlatOutputs(network).outputs(inputs)
    for name in backends:
        found = _checked(_MAKERS[name], network, inputs, expected)
        if isinstance(found, str):
            left_out[name] = found
        else:
            runs[name] = found
    return runs, left_out


def _checked(
    make: Callable[[BranchedNetwork, Any], Run], network: BranchedNetwork, inputs: Any, expected: Mapping[str, Tensor]
) -> Run | str:
    """What runs the network with its outputs; or in words why this does not."""
    try:
        run = make(network, inputs)
        with torch.no_grad():
            compared_outputs([expected], [named_tensors(run(inputs, network.tasks))])
    except BuildError as error:
        return str(error)
    return run


def _eager(network: BranchedNetwork, inputs: Any) -> Run:
    prepared = prepare(network, example=inputs)
    return lambda x, tasks: dict(prepared(x, tasks=list(tasks)))


def _compiled(network: BranchedNetwork, inputs: Any) -> Run:
    compiled = compile_network(network, inputs)
    return lambda x, tasks: dict(compiled(x, tasks=list(tasks)))


def _aoti(network: BranchedNetwork, inputs: Any) -> Run:
    restore = restoring(network, inputs)
    with tempfile.TemporaryDirectory(prefix="branchnet-") as folder:
        file = Path(folder) / "network.pt2"
        run = write_model(file, prepare(network, example=inputs), inputs, "aoti", dynamic=True, original=network).run
    return lambda x, tasks: restore(run(x), tasks)


def _onnx(network: BranchedNetwork, inputs: Any) -> Run:
    if device_of(network) != "cpu":
        raise BuildError(f"ONNX Runtime is used on CPUs; the network is on {device_of(network)}")
    restore = restoring(network, inputs)
    with tempfile.TemporaryDirectory(prefix="branchnet-") as folder:
        file = Path(folder) / "network.onnx"
        write_model(file, prepare(network, example=inputs), inputs, "onnx", dynamic=True, original=network)
        return OnnxNetwork(file.read_bytes(), network.tasks, restore=restore)


_MAKERS: dict[str, Callable[[BranchedNetwork, Any], Run]] = {
    "eager": _eager,
    "compiled": _compiled,
    "onnxruntime": _onnx,
    "aoti": _aoti,
}


def _key(network: BranchedNetwork, inputs: Any, backends: Sequence[str]) -> str:
    """A hash of what a measurement depends on."""
    weights = checksum((name, tensor.detach().cpu().contiguous()) for name, tensor in network.state_dict().items())
    forms = [(tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for tensor in flat_example(inputs)]
    machine = [platform.machine(), platform.processor(), torch.get_num_threads(), torch.__version__]
    return hashlib.sha256(json.dumps([weights, forms, machine, list(backends)], default=str).encode()).hexdigest()


def _read(file: Path, key: str) -> dict[str, Any] | None:
    """What was measured before, where it is of the same network and machine."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); remove it to measure again") from None
    return found if isinstance(found, dict) and found.get("key") == key else None
