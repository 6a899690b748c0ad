"""Exporting a branched network as one file that runs elsewhere, checked against the network before it is left behind.

Beside `model.pt2` (or `.onnx`, `.safetensors`) lie `model.yaml`, the specification, and `model.md`, the model card.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.builder.network.surgery import keep_tasks
from branchnet.deploy.model_card import input_names, model_card
from branchnet.deploy.weight_files import load_weights, save_weights
from branchnet.errors import BuildError
from branchnet.inference.torch_compile import compiler_problem, device_of, first_line, map_input
from branchnet.stages import Example, call, flat_example
from branchnet.utils.files import write_text

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["pt2", "aoti", "onnx", "safetensors"]
SUFFIXES: dict[str, str] = {"pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""By the outputs' type, how far an exported output may be off, as a share of the largest value of that output."""
_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)
_LEFT_OUT = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, *_SIZES)
_ONNX_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        model: the exported file.
        specification: the architecture as YAML.
        card: the model card, Markdown.
        outputs: names of the outputs: a task's name, or `task.key` where a task has several tensors.
        difference: by output the largest difference to the network, as a share of the output's largest value.
        batches: the batch sizes that were compared.
    """

    model: Path
    specification: Path
    card: Path
    outputs: tuple[str, ...]
    difference: Mapping[str, float]
    batches: tuple[int, ...]


def export(
    branched: BranchedNetwork,
    example: Example,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    tasks: Sequence[str] | None = None,
    dynamic: bool = True,
) -> Exported:
    """Write `branched` as one file for deployment, with its specification and a model card beside it.

    The file is loaded again and run at several batch sizes; only if it gives the network's outputs all three files are
    put in place, each complete, the model last. Calling what was loaded gives a dict of tensors by output name.

    Args:
        branched: the network, in evaluation mode.
        example: inputs; everything but the batch size is fixed by them.
        path: the file to write, with the format's suffix.
        format: `"pt2"`, a torch.export program that torch alone loads; `"aoti"`, an AOTInductor package compiled for
            this machine's kind of device, which torch loads without any Python code of the network; `"onnx"` (needs
            `pip install branchnet[export]`); `"safetensors"`, weights to be loaded into the network that the
            specification describes. By default what the suffix says; `.pt2` is taken for `"pt2"`.
        tasks: the tasks to export, all by default; nodes that no such task needs are left out.
        dynamic: whether the batch size may differ from the example's.

    Raises:
        BuildError: an example and a path in the wrong order, a format, suffix or task that is unknown, a network in
            training mode or that cannot be exported, or one whose exported outputs differ; nothing is left behind.
    """
    from branchnet.specification.architecture import Architecture

    _check_order(example, path)
    target = Path(path)
    chosen = _checked_format(format, target)
    if branched.training:
        raise BuildError("the network is in training mode; call branched.eval() before it is exported")
    if not all(tensor.numel() for tensor in flat_example(example)):
        raise BuildError("the example holds no samples; pass at least one, as the network will get them")
    network = branched if tasks is None else keep_tasks(branched, tasks)
    target.parent.mkdir(parents=True, exist_ok=True)
    specification, card = target.with_suffix(".yaml"), target.with_suffix(".md")
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.stem}-"))
    try:
        written = write_model(folder / target.name, network, example, chosen, dynamic=dynamic)
        Architecture.from_network(network).save(folder / specification.name)
        text = model_card(
            network,
            example,
            name=target.stem,
            format=chosen,
            file=target.name,
            dynamic=dynamic,
            outputs=written.outputs,
            difference=written.difference,
            tolerance=max((TOLERANCES.get(value.dtype, 0.0) for value in written.outputs.values()), default=0.0),
            batches=written.batches,
        )
        write_text(folder / card.name, text)
        for final in (specification, card, target):
            _put(folder / final.name, final)
    finally:
        shutil.rmtree(folder)
    return Exported(target, specification, card, tuple(written.outputs), written.difference, written.batches)


def _check_order(example: Any, path: Any) -> None:
    if isinstance(example, str | os.PathLike) or not isinstance(path, str | os.PathLike):
        raise BuildError(
            f"export takes the network, an example (tensors) and a path (a file's name), in this order; as the example "
            f"a {type(example).__name__} was given and as the path a {type(path).__name__}"
        )


def _put(written: Path, final: Path) -> None:
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    written.replace(final)


def _checked_format(format: str | None, target: Path) -> str:
    chosen = format or next((name for name, suffix in SUFFIXES.items() if suffix == target.suffix), None)
    if chosen not in SUFFIXES:
        raise BuildError(
            f"format={format!r} and path {target.name!r} name no format; choose from {', '.join(SUFFIXES)}"
        )
    if target.suffix != SUFFIXES[chosen]:
        raise BuildError(f"a file of format {chosen!r} ends in {SUFFIXES[chosen]!r}; the path is {str(target)!r}")
    return chosen


@dataclass(frozen=True)
class Written:
    """What `write_model` compared: the network's outputs at the last batch size, differences by output, batch sizes."""

    outputs: Mapping[str, Tensor]
    difference: Mapping[str, float]
    batches: tuple[int, ...]


def write_model(path: Path, network: BranchedNetwork, example: Example, format: str, *, dynamic: bool) -> Written:
    """Write the model alone, load it and compare; `export` explains the arguments and the errors."""
    batch = _batch_size(example)
    batches = tuple(sorted({1, batch, batch + 2})) if dynamic else (batch,)
    examples = [_resized(example, size) for size in batches]
    # Traced at size 1, torch.export would take the batch for a constant.
    traced_with = _resized(example, max(2, batch)) if dynamic else example
    flat = FlatOutputs(network, list(example) if isinstance(example, Mapping) else (), all_of=format != "safetensors")
    with torch.no_grad(), _without_tf32(device_of(network)):
        expected = [call(flat, each) for each in examples]
        try:
            with _without_the_warning_on_leaves():
                run = WRITERS[format](flat, traced_with, path, dynamic)
            found = [run(each) for each in examples]
        except BuildError:
            raise
        except Exception as error:  # exporters raise errors of many kinds, none of them documented
            raise BuildError(f"{format} export failed: {type(error).__name__}: {first_line(error)}") from error
    return Written(expected[-1], _compared(expected, found), batches)


@contextmanager
def _without_tf32(device: str) -> Iterator[None]:
    """Convolutions and products of GPUs in float32 proper, as other runtimes compute them: TF32 keeps three digits.

    What the caller set for single operators stands: torch cannot say then what holds for all.
    """
    cudnn = torch.backends.cudnn
    try:
        before = (cudnn.allow_tf32, torch.get_float32_matmul_precision())
    except RuntimeError:
        device = "cpu"
    if device != "cuda":
        yield
        return
    try:
        cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _without_the_warning_on_leaves() -> Iterator[None]:
    """Silence what torch warns itself of when it copies an exported program; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


class FlatOutputs(nn.Module):
    """A branched network with plain arguments whose outputs are tensors by name: what exporters understand.

    A task with several tensors gives `task.key` or `task.0`, `task.1`, ... With `all_of` what cannot be taken apart is
    refused; otherwise it is left out.
    """

    def __init__(self, network: BranchedNetwork, names: Sequence[str] = (), *, all_of: bool = True) -> None:
        super().__init__()
        self.network = network
        self.all_of = all_of

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            return self.outputs(kwargs or (args if len(args) > 1 else args[0]))

        if names:
            # torch.export asks for the dynamic shapes of named arguments, and cannot describe `**kwargs`.
            parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
            forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward

    def outputs(self, x: Input) -> dict[str, Tensor]:
        """Every tensor of every task's output by its name."""
        named = {}
        for task, output in self.network(x).items():
            for keys, value in pytree.tree_flatten_with_path(output)[0]:
                name = ".".join((task, *(str(_key(key)) for key in keys)))
                if name in named:
                    raise BuildError(f"two outputs are called {name!r}; rename a task")
                if isinstance(value, Tensor):
                    named[name] = value
                elif self.all_of and not isinstance(value, _LEFT_OUT):
                    raise BuildError(
                        f"the output of {task!r} holds a {type(value).__name__}, which exporters cannot take apart: "
                        "return tensors in tuples, lists or dicts, or register the class with torch.utils._pytree"
                    )
            if self.all_of and not any(name == task or name.startswith(f"{task}.") for name in named):
                raise BuildError(f"the output of {task!r} holds no tensor; leave the task out of `tasks`")
        return named


def _key(key: Any) -> Any:
    """The name or number in a step of a path through nested outputs."""
    return next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind))


def _traced(flat: FlatOutputs, example: Example, dynamic: bool) -> ExportedProgram:
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (flat_example(example), {})
    shapes: Any = None
    if dynamic:
        batch, symbol = _batch_size(example), torch.export.Dim("batch", min=1)

        def shape_of(tensor: Tensor) -> dict[int, Any]:
            return {0: symbol} if tensor.dim() and tensor.shape[0] == batch else {}

        named = {name: shape_of(tensor) for name, tensor in kwargs.items()}
        shapes = named if kwargs else {"args": tuple(shape_of(tensor) for tensor in args)}
    return torch.export.export(flat, args, kwargs, dynamic_shapes=shapes)


def _write_pt2(flat: FlatOutputs, example: Example, path: Path, dynamic: bool) -> Callable[[Example], Any]:
    torch.export.save(_traced(flat, example, dynamic), path)
    loaded = torch.export.load(path).module()
    return lambda x: call(loaded, x)


def _write_aoti(flat: FlatOutputs, example: Example, path: Path, dynamic: bool) -> Callable[[Example], Any]:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    if problem := compiler_problem(device_of(flat)):
        raise BuildError(f"AOTInductor cannot compile here: {problem}")
    aoti_compile_and_package(_traced(flat, example, dynamic), package_path=str(path))
    index = next((t.device.index for t in flat.parameters() if t.is_cuda and t.device.index is not None), -1)
    loaded: Any = aoti_load_package(str(path), device_index=index)
    return lambda x: call(loaded, x)


def _write_onnx(flat: FlatOutputs, example: Example, path: Path, dynamic: bool) -> Callable[[Example], Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BuildError(f"ONNX export needs {error.name}: pip install 'branchnet[export]'") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in flat.state_dict().values())
    if size > _ONNX_BYTES:
        raise BuildError(f"the weights are {size:,} bytes; one ONNX file holds 2 GB: export fewer tasks, or as pt2")
    names = list(call(flat, example))
    inputs = input_names(example)
    if both := [name for name in names if name in inputs]:
        raise BuildError(f"{both[0]!r} is an input and an output of the file; rename that task")
    program = torch.onnx.export(
        _traced(flat, example, dynamic), input_names=inputs, output_names=names, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(x: Example) -> dict[str, Tensor]:
        arrays = {name: tensor.numpy(force=True) for name, tensor in zip(inputs, flat_example(x), strict=True)}
        return {name: torch.from_numpy(array) for name, array in zip(names, session.run(names, arrays), strict=True)}

    return run


def _write_safetensors(flat: FlatOutputs, example: Example, path: Path, dynamic: bool) -> Callable[[Example], Any]:
    save_weights(flat.network, path)
    emptied = FlatOutputs(copy.deepcopy(flat.network), all_of=False)
    for tensor in (*emptied.parameters(), *emptied.buffers()):
        tensor.zero_()
    load_weights(emptied.network, path)
    return lambda x: call(emptied, x)


WRITERS: dict[str, Callable[[FlatOutputs, Example, Path, bool], Callable[[Example], Any]]] = {
    "pt2": _write_pt2,
    "aoti": _write_aoti,
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
}
"""By format what writes a file and returns the function that was loaded from it."""


def _compared(expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The largest relative difference of every output.

    Raises:
        BuildError: other names, shapes or types, or values that differ by more than the tolerance.
    """
    difference: dict[str, float] = {}
    for right, other in zip(expected, found, strict=True):
        if list(right) != list(other):
            raise BuildError(f"the exported file has the outputs {list(other)}; the network has {list(right)}")
        for name, value in right.items():
            exported = other[name].to(value.device)
            if exported.shape != value.shape or exported.dtype != value.dtype:
                forms = f"{tuple(exported.shape)} {exported.dtype}, the network's {tuple(value.shape)} {value.dtype}"
                raise BuildError(f"the exported output {name!r} is {forms}")
            difference[name] = max(difference.get(name, 0.0), _apart(value.double(), exported.double()))
            if not difference[name] <= TOLERANCES.get(value.dtype, 0.0):
                raise BuildError(
                    f"the exported output {name!r} differs from the network's by {difference[name]:.2e} of its largest "
                    f"value; {TOLERANCES.get(value.dtype, 0.0):.0e} is allowed"
                )
    return difference


def _apart(wanted: Tensor, found: Tensor) -> float:
    """Largest difference by the largest finite value; infinite where only one of two is a number, or not the same."""
    apart = (found - wanted).abs()
    apart[(found == wanted) | (found.isnan() & wanted.isnan())] = 0.0
    largest = apart.nan_to_num(nan=math.inf).max().item() if apart.numel() else 0.0
    numbers = wanted[wanted.isfinite()].abs()
    scale = numbers.max().item() if numbers.numel() else 0.0
    return largest / scale if scale else largest


def _batch_size(example: Example) -> int:
    return next((tensor.shape[0] for tensor in flat_example(example) if tensor.dim()), 0)


def _resized(example: Example, size: int) -> Any:
    """The example with its samples repeated or left out until there are `size`."""
    batch = _batch_size(example)
    if size == batch:
        return example

    def resized(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % batch]

    return map_input(resized, example)
