"""One file for devices: an ExecuTorch program with a method for each set of tasks, which holds every weight once.

ExecuTorch and its XNNPACK delegate store constants by their content. Methods traced from one prepared network have
equal constants, so the file holds the nodes that several methods run once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchnet.builder import BranchedNetwork, GroupedNetworks, SharingNetwork
from branchnet.builder.network.grouped_networks import as_one_network
from branchnet.builder.network.surgery import keep_tasks
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.deploy.exporting import compared_outputs, resized
from branchnet.deploy.flat_outputs import FlatOutputs
from branchnet.deploy.format_writers import batch_size, traced
from branchnet.deploy.onnx_files.onnx_notes import check_labels, metadata_of
from branchnet.errors import BuildError
from branchnet.inference import prepare
from branchnet.inference.torch_compile import first_line, map_input
from branchnet.stages import Example, call, flat_example
from branchnet.utils.files import atomic_write

METADATA = "branchnet"
"""The constant method that returns what the program is, as JSON."""
_ALL = "forward"


@dataclass(frozen=True)
class ExecutorchProgram:
    """What `executorch_program` wrote.

    Attributes:
        path: the file.
        methods: by name of a method the names of its outputs, in order: a task's name, or `task.key` where a task has
            several tensors.
        difference: the largest difference to the network of any output, as a share of that output's largest value.
        batches: the batch sizes that were compared.
    """

    path: Path
    methods: Mapping[str, tuple[str, ...]]
    difference: float
    batches: tuple[int, ...]


def executorch_program(
    network: BranchedNetwork | GroupedNetworks | SharingNetwork,
    example: Example,
    path: str | os.PathLike[str],
    *,
    tasks: Sequence[Sequence[str]] | None = None,
    max_batch_size: int | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> ExecutorchProgram:
    """Write an ExecuTorch program, for phones and other devices, with one method for each set of tasks.

    A method computes only what its tasks need, by XNNPACK where that has the operators and by ExecuTorch's portable
    ones elsewhere. The file holds weights that several methods use once. The constant method `branchnet` returns
    JSON with the tasks, each method's outputs in order, labels and preprocessing. Every method is run by ExecuTorch's
    runtime and compared with the network before the file is put in place.

    Args:
        network: the network, in evaluation mode.
        example: inputs; everything but the batch size is fixed by them.
        path: the file to write, which ends in `.pte`.
        tasks: the tasks of each method, which is called by their names with `_` between: `[["depth"], ["depth",
            "edges"]]` gives `depth` and `depth_edges`. By default `forward` with all tasks, where one input has
            several, and one for each task.
        max_batch_size: batches of 1 to so many samples work, and memory for the largest is set aside; by default only
            batches of the example's size.
        labels: by task the names of its classes, in the order of dimension 1.
        preprocessing: what inputs must have gone through, as plain data.

    Returns:
        the file, its methods, and how far they are off.

    Raises:
        BuildError: ExecuTorch is not installed, unknown tasks, two methods of one name, a network in training mode or
            that cannot be exported, or a method with other outputs than the network's; nothing is left behind.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(1, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor").eval()
    >>> made = branchnet.deploy.executorch_program(branched, x, "net.pte")  # doctest: +SKIP
    >>> made.methods  # doctest: +SKIP
    {'forward': ('a', 'b'), 'a': ('a',), 'b': ('b',)}
    """
    target = Path(path)
    one = network.separate_paths() if isinstance(network, SharingNetwork) else as_one_network(network)
    _check(one, example, target, max_batch_size)
    methods = _methods(network, one.tasks, tasks)
    notes = metadata_of(one.tasks, labels, preprocessing)
    _import_executorch()
    subsets = _subsets(prepare(one, example=example), methods)
    originals = _subsets(one, methods)
    batch = batch_size(example)
    batches = (batch,) if max_batch_size is None else tuple(sorted({1, min(batch, max_batch_size), max_batch_size}))
    samples = [map_input(Tensor.cpu, resized(example, size)) for size in batches]
    target.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        expected = {name: [call(flat, x) for x in samples] for name, flat in _flat(originals, example).items()}
        outputs = {name: tuple(each[0]) for name, each in expected.items()}
        for each in expected.values():
            check_labels({task: names for task, names in (labels or {}).items() if task in each[0]}, each[0])
        note = {"tasks": list(one.tasks), "methods": outputs}
        note |= {key.removeprefix("branchnet."): json.loads(text) for key, text in notes.items()}
        largest = resized(example, max(2, batches[-1])) if max_batch_size else example
        try:
            content = _lowered(_flat(subsets, example), map_input(Tensor.cpu, largest), max_batch_size, note)
        except BuildError:
            raise
        except Exception as error:  # torch.export and ExecuTorch raise errors of many kinds
            raise BuildError(f"ExecuTorch export failed: {type(error).__name__}: {first_line(error)}") from error
        with atomic_write(target) as written:
            written.write_bytes(content)
            try:
                found = {name: [run(x) for x in samples] for name, run in _loaded(written, outputs).items()}
            except RuntimeError as error:
                raise BuildError(f"ExecuTorch cannot run what it wrote: {first_line(error)}") from error
            differences = [compared_outputs(expected[name], each) for name, each in found.items()]
    return ExecutorchProgram(target, outputs, max(max(each.values()) for each in differences), batches)


def _check(network: BranchedNetwork, example: Example, target: Path, max_batch_size: int | None) -> None:
    if network.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call network.eval() first")
    if target.suffix != ".pte":
        raise BuildError(f"the path of an ExecuTorch program is {str(target)!r}; expected one that ends in '.pte'")
    if not all(tensor.numel() for tensor in flat_example(example)):
        raise BuildError("the example has no samples; expected at least one, as the network will get them")
    if max_batch_size is not None and max_batch_size < 2:
        raise BuildError(
            f"max_batch_size={max_batch_size}; expected 2 or more, or None for batches of the example's size"
        )


def _methods(
    network: BranchedNetwork | GroupedNetworks | SharingNetwork,
    known: tuple[str, ...],
    asked: Sequence[Sequence[str]] | None,
) -> dict[str, tuple[str, ...]]:
    """The tasks of each method by its name."""
    alone = isinstance(network, SharingNetwork)
    if asked is None:
        pairs = [] if alone else [(_ALL, known)]
        pairs += [(task, (task,)) for task in known]
    else:
        if isinstance(asked, str) or any(isinstance(tasks, str) for tasks in asked) or not asked:
            raise BuildError(f"tasks={asked!r}; expected a list of lists of tasks, one for each method")
        pairs = [("_".join(own), own) for own in (wanted_tasks(tasks, known) for tasks in asked)]
    for name, own in pairs:
        if alone and len(own) > 1:
            raise BuildError(f"a method has the tasks {list(own)}; expected one: an input belongs to one task")
        if name == METADATA:
            raise BuildError(f"a method would be called {name!r}, as the program's metadata; rename that task")
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BuildError(f"two methods would be called {twice[0]!r}; expected different names; rename a task")
    return dict(pairs)


def _import_executorch() -> None:
    try:
        import executorch.exir
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        raise BuildError(f"ExecuTorch programs need {error.name}: pip install 'branchnet[executorch]'") from error


def _subsets(network: BranchedNetwork, methods: Mapping[str, Sequence[str]]) -> dict[str, BranchedNetwork]:
    """Copies, on the CPU, of what each method needs."""
    return {name: keep_tasks(network, tasks).cpu().eval() for name, tasks in methods.items()}


def _flat(networks: Mapping[str, BranchedNetwork], example: Example) -> dict[str, FlatOutputs]:
    inputs = list(example) if isinstance(example, Mapping) else ()
    return {name: FlatOutputs(network, inputs) for name, network in networks.items()}


def _lowered(
    networks: Mapping[str, FlatOutputs], example: Example, max_batch_size: int | None, note: Mapping[str, Any]
) -> bytes:
    """The content of the file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    programs = {
        name: traced(flat, example, max_batch_size is not None, largest=max_batch_size)
        for name, flat in networks.items()
    }
    constants = {METADATA: json.dumps(note, ensure_ascii=False)}
    lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()], constant_methods=constants)
    content: bytes = lowered.to_executorch().buffer
    return content


def _loaded(file: Path, outputs: Mapping[str, Sequence[str]]) -> dict[str, Callable[[Example], dict[str, Tensor]]]:
    """The methods of a file as functions from inputs to tensors by name."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)

    def method(name: str) -> Callable[[Example], dict[str, Tensor]]:
        loaded = program.load_method(name)

        def run(x: Example) -> dict[str, Tensor]:
            values = loaded.execute([tensor.contiguous() for tensor in flat_example(x)])
            return dict(zip(outputs[name], (value.clone() for value in values), strict=True))

        return run

    return {name: method(name) for name in outputs}
