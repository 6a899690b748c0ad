"""One ONNX model for each set of tasks, from the model of all tasks; large tensors stand once, in one file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

INLINE_BYTES = 1024
"""Tensors below this size stay in each model."""
_PAGE = 4096
"""Tensors start at multiples of this, so that runtimes can map them into memory."""


def subset_model(model: ModelProto, outputs: Collection[str]) -> ModelProto:
    """A copy of the model with some outputs, and only what they need.

    Args:
        model: the model of all outputs; its operators hold no subgraphs that read outer tensors.
        outputs: names of the outputs that stay.
    """
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    graph = made.graph
    for field, kept in (
        ("node", nodes[::-1]),
        ("initializer", [one for one in model.graph.initializer if one.name in needed]),
        ("output", [one for one in model.graph.output if one.name in outputs]),
        ("input", [one for one in model.graph.input if one.name in needed]),
        ("value_info", []),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
    return made


class SharedTensors:
    """A file that holds the large tensors of several models, equal ones once.

    Args:
        file: what they are written to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def add(self, model: ModelProto) -> None:
        """Write the large tensors of a model that the file does not hold yet.

        Args:
            model: the model.
        """
        for tensor in model.graph.initializer:
            content = _raw(tensor)
            if len(content) < INLINE_BYTES:
                continue
            if (digest := hashlib.sha256(content).digest()) not in self._offsets:
                self._file.seek(-(-self._file.tell() // _PAGE) * _PAGE)
                self._offsets[digest] = self._file.tell()
                self._file.write(content)
        self._file.flush()

    def refer(self, model: ModelProto, location: str) -> None:
        """Let a model read its large tensors from the file.

        Args:
            model: a model whose large tensors were added; it is changed.
            location: the file's path from the model's folder.
        """
        from onnx.external_data_helper import set_external_data

        for tensor in model.graph.initializer:
            content = _raw(tensor)
            if len(content) >= INLINE_BYTES:
                offset = self._offsets[hashlib.sha256(content).digest()]
                tensor.raw_data = content
                set_external_data(tensor, location, offset=offset, length=len(content))
                tensor.ClearField("raw_data")
                for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(field)


def _raw(tensor: TensorProto) -> bytes:
    from onnx import numpy_helper

    return bytes(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
