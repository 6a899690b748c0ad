"""An ONNX model of a branched network in which every node is float, has int8 weights, or computes in int8."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.deploy.onnx_files.onnx_notes import SCOPES_KEY, without_traces
from branchnet.deploy.quantization.weight_rounding import round_weights

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Mode: TypeAlias = Literal["float", "weights", "int8"]
"""`float`: as it is; `weights`: int8 in the file, multiplied out at loading; `int8`: weights and activations, computed
in int8 where ONNX Runtime has a kernel."""

MODES: tuple[Mode, ...] = ("float", "weights", "int8")
OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool",
    "AveragePool", "GlobalAveragePool", "ReduceMean", "Concat", "Split", "Resize", "Pad", "Gather", "Reshape",
    "Transpose", "Squeeze", "Unsqueeze", "Flatten",
)  # fmt: skip
"""What is quantised in mode `int8`. Softmax and norms stay float: eight bits lose most there, and they take no time."""

_NODE = re.compile(r"(?:^|[^\w.])network\.(nodes\.\d+\.\d+|heads\.\d+)(?![\w])")


class NodeQuantizer:
    """Writes models in chosen modes, from one calibration.

    Args:
        model: the float model that torch's exporter wrote of `FlatOutputs`, with the names of scopes.
        calibration: inputs by name, batch by batch; the smallest and largest value of each tensor are taken from them.

    Attributes:
        operators: by node id the names of its operators.
    """

    def __init__(self, model: ModelProto, calibration: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
        from onnx import shape_inference

        self.operators = _name_operators(model)
        without_traces(model)
        self._model = shape_inference.infer_shapes(model)
        self._ranges = _ranges(self._model, calibration)

    def write(self, modes: Mapping[str, Mode]) -> bytes:
        """Return the model's file with some nodes in other modes than float.

        Args:
            modes: by node id.
        """
        model = copy.deepcopy(self._model)
        computed = set(self._of(modes, "int8"))
        if any(node.op_type in OPERATORS for node in model.graph.node if node.name in computed):
            model = self._quantized(model, computed)
        round_weights(model, set(self._of(modes, "weights")))
        del model.graph.value_info[:]
        return bytes(model.SerializeToString())

    def _of(self, modes: Mapping[str, Mode], mode: Mode) -> Iterator[str]:
        for node, chosen in modes.items():
            if chosen == mode:
                yield from self.operators.get(node, ())

    def _quantized(self, model: ModelProto, names: Collection[str]) -> ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        quantizer = QDQQuantizer(
            model,
            True,  # a scale for each channel of the weights
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            copy.deepcopy(self._ranges),  # the quantiser changes them
            sorted(names),
            [],
            list(OPERATORS),
            {},
        )
        quantizer.quantize_model()
        made: ModelProto = quantizer.model.model
        _float_outputs(made, names)
        _restore_readers(self._model, made, names)
        read = {name for node in made.graph.node for name in node.input}
        for unread in [one for one in made.graph.initializer if one.name not in read]:
            made.graph.initializer.remove(unread)
        return made


def _name_operators(model: ModelProto) -> dict[str, list[str]]:
    """Give every operator a name of its own, and return those of each node of the network."""
    found: dict[str, list[str]] = {}
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES_KEY), "")
        # What the exporter's optimiser made has no scope: then its weights say whose it is.
        places = _NODE.findall(scopes) or _NODE.findall(" ".join(node.input))
        if places:
            found.setdefault(places[-1], []).append(node.name)
    return found


def _ranges(model: ModelProto, calibration: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Any:
    """The smallest and largest value of each tensor, as ONNX Runtime's quantiser takes them."""
    from onnx import save
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(prefix="branchnet-") as folder:
        file = Path(folder) / "float.onnx"
        save(model, file)
        calibrator = create_calibrator(
            file,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "ranges.onnx"),
            providers=["CPUExecutionProvider"],
        )
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data()
        del calibrator  # its session holds the files
    return ranges


def _float_outputs(model: ModelProto, names: Collection[str]) -> None:
    """Return what products and float operators give at the network's end as it is, not rounded to 256 values."""
    makers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    gone = []
    for output in model.graph.output:
        widened = makers.get(output.name)
        rounded = makers.get(widened.input[0]) if widened is not None else None
        if widened is None or rounded is None or rounded.op_type != "QuantizeLinear":
            continue
        source = makers.get(rounded.input[0])
        if source is None or (source.name in names and source.op_type not in ("Gemm", "MatMul")):
            continue
        before = rounded.input[0]
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == before and node is not rounded:
                    node.input[place] = output.name
        source.output[list(source.output).index(before)] = output.name
        gone += [widened, rounded]
    for node in gone:
        model.graph.node.remove(node)


def _restore_readers(original: ModelProto, model: ModelProto, names: Collection[str]) -> None:
    """Let operators of float nodes read float tensors: the quantiser rounds for all readers of a tensor.

    Where the tensor is the result of an operator in int8, all its readers get the rounded one, which alone is computed.
    """
    from onnx import TensorProto

    by_name: dict[str, NodeProto] = {node.name: node for node in original.graph.node}
    weights: dict[str, TensorProto] = {one.name: one for one in original.graph.initializer}
    made_in_int8 = {name for node in original.graph.node if node.name in names for name in node.output}
    held = {one.name for one in model.graph.initializer}
    for node in model.graph.node:
        before = by_name.get(node.name)
        if before is None or node.name in names:
            continue
        for place, name in enumerate(before.input):
            if node.input[place] != name and name not in made_in_int8:
                node.input[place] = name
                if name in weights and name not in held:
                    model.graph.initializer.append(weights[name])
                    held.add(name)


def as_arrays(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
    """Tensors as ONNX Runtime takes them.

    Args:
        names: of the inputs.
        tensors: in the same order.
    """
    return {name: np.ascontiguousarray(tensor.numpy(force=True)) for name, tensor in zip(names, tensors, strict=True)}
