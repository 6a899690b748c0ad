"""One writer for each export format: it writes the file, loads it again and returns what runs the loaded model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from branchnet.deploy.flat_outputs import FlatOutputs
from branchnet.deploy.model_card import input_names
from branchnet.deploy.onnx_files.onnx_notes import SCOPES_KEY, TASKS_KEY, without_traces
from branchnet.deploy.weight_files import load_weights, save_weights
from branchnet.errors import BuildError
from branchnet.inference.torch_compile import compiler_problem, device_of
from branchnet.stages import Example, call, flat_example

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Dynamic: TypeAlias = Literal[True, False, "sizes"]
"""What may differ from the example: the batch size, nothing, or the batch size, heights and widths of images, and the
lengths of sequences of integers."""


@dataclass(frozen=True)
class WriterOptions:
    """What writers are asked for.

    Attributes:
        dynamic: what may differ from the example.
        opset: of an ONNX file; None for the exporter's own.
        metadata: of an ONNX file.
    """

    dynamic: Dynamic = True
    opset: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


_LOWEST_OPSET = 18
"""What torch's exporter writes; older operators are the work of onnx's own converter."""
_ONNX_BYTES = 2_000_000_000
"""A protobuf message, which an ONNX file is, holds less than 2 GiB."""


def traced(flat: FlatOutputs, example: Example, dynamic: Dynamic, *, largest: int | None = None) -> ExportedProgram:
    """Trace a network by torch.export.

    Args:
        flat: the network.
        example: inputs; where the batch size is free, two samples or more.
        dynamic: what may differ from them.
        largest: the largest batch size; None for any.
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (flat_example(example), {})
    shapes: Any = None
    if dynamic:
        batch, symbol = batch_size(example), torch.export.Dim("batch", min=1, max=largest)

        def shape_of(tensor: Tensor) -> dict[int, Any]:
            sizes = dict.fromkeys(free_sizes(tensor), torch.export.Dim.DYNAMIC) if dynamic == "sizes" else {}
            return ({0: symbol} if tensor.dim() and tensor.shape[0] == batch else {}) | sizes

        named = {name: shape_of(tensor) for name, tensor in kwargs.items()}
        shapes = named if kwargs else {"args": tuple(shape_of(tensor) for tensor in args)}
    return torch.export.export(flat, args, kwargs, dynamic_shapes=shapes)


def _write_pt2(flat: FlatOutputs, example: Example, path: Path, options: WriterOptions) -> Callable[[Example], Any]:
    torch.export.save(traced(flat, example, options.dynamic), path)
    loaded = torch.export.load(path).module()
    return lambda x: call(loaded, x)


def _write_aoti(flat: FlatOutputs, example: Example, path: Path, options: WriterOptions) -> Callable[[Example], Any]:
    from branchnet.utils.installed_torch.torch_internals import aoti_compile_and_package, aoti_load_package

    if problem := compiler_problem(device_of(flat)):
        raise BuildError(f"AOTInductor cannot compile here: {problem}; use format='pt2' or 'onnx'")
    aoti_compile_and_package(traced(flat, example, options.dynamic), package_path=str(path))
    index = next((t.device.index for t in flat.parameters() if t.is_cuda and t.device.index is not None), -1)
    loaded: Any = aoti_load_package(str(path), device_index=index)
    return lambda x: call(loaded, x)


def _write_onnx(flat: FlatOutputs, example: Example, path: Path, options: WriterOptions) -> Callable[[Example], Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BuildError(f"ONNX export needs {error.name}: pip install 'branchnet[export]'") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in flat.state_dict().values())
    if size > _ONNX_BYTES:
        raise BuildError(
            f"the weights are {size:,} bytes; expected at most {_ONNX_BYTES:,} in one ONNX file; use fewer tasks= or "
            "format='pt2'"
        )
    names = list(call(flat, example))
    inputs = input_names(example)
    if both := [name for name in names if name in inputs]:
        raise BuildError(
            f"{both[0]!r} is an input and an output of the file; expected different names; rename that task"
        )
    program = torch.onnx.export(
        traced(flat, example, options.dynamic),
        input_names=inputs,
        output_names=names,
        opset_version=None if options.opset is None else max(options.opset, _LOWEST_OPSET),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    if options.opset is not None:
        model = _in_opset(model, options.opset)
    without_traces(model, keep=(SCOPES_KEY,))
    tasks = json.dumps(flat.network.tasks, ensure_ascii=False)
    for key, value in {TASKS_KEY: tasks, **options.metadata}.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(x: Example) -> dict[str, Tensor]:
        arrays = {name: tensor.numpy(force=True) for name, tensor in zip(inputs, flat_example(x), strict=True)}
        return {name: torch.from_numpy(array) for name, array in zip(names, session.run(names, arrays), strict=True)}

    return run


def _in_opset(model: Any, opset: int) -> Any:
    """The model with operators of this version, and no newer format of files than these need."""
    from onnx import helper, version_converter

    if opset < _LOWEST_OPSET:
        model = version_converter.convert_version(model, opset)
        for node in model.graph.node:  # reductions of older versions do not know it; 0 is what they do
            for attribute in [one for one in node.attribute if one.name == "noop_with_empty_axes" and not one.i]:
                node.attribute.remove(attribute)
    found = next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if found != opset:
        raise BuildError(f"opset={opset}: the exporter wrote {found}, which its operators need; expected opset={found}")
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


def _write_safetensors(
    flat: FlatOutputs, example: Example, path: Path, options: WriterOptions
) -> Callable[[Example], Any]:
    save_weights(flat.network, path)
    # Loaded into zeros: weights that the file lacks cannot pass for those of the network.
    emptied = FlatOutputs(copy.deepcopy(flat.network), all_of=False)
    for tensor in (*emptied.parameters(), *emptied.buffers()):
        tensor.zero_()
    load_weights(emptied.network, path)
    return lambda x: call(emptied, x)


WRITERS: dict[str, Callable[[FlatOutputs, Example, Path, WriterOptions], Callable[[Example], Any]]] = {
    "pt2": _write_pt2,
    "aoti": _write_aoti,
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
}
"""By format what writes a file and returns the function that was loaded from it."""


def free_sizes(tensor: Tensor) -> range:
    """The dimensions that are sizes: of images (B, C, ...) those after C, of integers (B, length, ...) all but B.

    Args:
        tensor: an input. Dimensions of other floats are taken for channels, which the weights fix.
    """
    if tensor.is_floating_point():
        return range(2, tensor.dim()) if tensor.dim() > 3 else range(0)
    return range(1, tensor.dim())


def batch_size(example: Example) -> int:
    """Return the length of dimension 0 of the example's first tensor that has one."""
    return next((tensor.shape[0] for tensor in flat_example(example) if tensor.dim()), 0)
