"""Weights of an ONNX model stored as int8, and computed with in float: they are multiplied out when it is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gather": 0}
_LARGEST = 127
_SMALLEST_TENSOR = 256
"""Elements below which scales and operators take as much room as int8 saves."""


def round_weights(model: ModelProto, names: Collection[str]) -> None:
    """Store the weights of some operators as int8 with a scale for each channel, in place.

    A weight is `Mul(Cast(int8), scale)`: operators on constants, which every runtime computes once, at loading. So the
    file is a quarter as large and as fast as before. The scale is the largest absolute value of a channel over 127
    (symmetric, round to nearest). Convolutions, products and look-ups of embeddings in float32 are known; a weight that
    another operator reads, too, stays.

    Args:
        model: the ONNX model.
        names: names of the operators.
    """
    from onnx import helper, numpy_helper

    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    made: list[NodeProto] = []
    for weight in [one for one in model.graph.initializer if one.data_type == 1]:
        axes = {_axis(node, weight.name) for node in readers.get(weight.name, []) if node.name in names}
        if len(axes) != 1 or None in axes or any(node.name not in names for node in readers[weight.name]):
            continue
        values = numpy_helper.to_array(weight)
        if values.ndim < 2 or values.size < _SMALLEST_TENSOR or not np.isfinite(values).all():
            continue
        rounded, scale = _rounded(values, next(axis for axis in axes if axis is not None))
        title = weight.name
        weight.CopyFrom(numpy_helper.from_array(rounded, f"{title}.int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{title}.scale"))
        made.append(helper.make_node("Cast", [f"{title}.int8"], [f"{title}.cast"], to=1))
        made.append(helper.make_node("Mul", [f"{title}.cast", f"{title}.scale"], [title]))
    operators = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(operators)


def _axis(node: NodeProto, weight: str) -> int | None:
    """The axis of the channels that an operator computes with a weight; None where it is not known."""
    place = list(node.input).index(weight)
    if node.op_type == "Gemm" and place == 1:
        transposed: Any = next((one.i for one in node.attribute if one.name == "transB"), 0)
        return 0 if transposed else 1
    expected = 0 if node.op_type == "Gather" else 1
    return _AXES.get(node.op_type) if place == expected else None


def _rounded(values: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    others = tuple(number for number in range(values.ndim) if number != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale
