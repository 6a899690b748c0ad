"""Weights of TensorFlow.js: a manifest in JSON that lists tensors, which lie one after another in binary files.

A tensor is float32, or bytes q of which each stands for q * scale + min.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]


def read_weights(manifest: Path) -> Weights:
    """The tensors by name, as float32."""
    weights: Weights = {}
    for group in json.loads(manifest.read_text()):
        stored = b"".join((manifest.parent / path).read_bytes() for path in group["paths"])
        position = 0
        for tensor in group["weights"]:
            values, size = _read_tensor(tensor, stored, position)
            weights[tensor["name"]] = values
            position += size
        if position != len(stored):
            raise ValueError(f"{manifest}: the tensors fill {position} bytes, expected all {len(stored)}")
    return weights


def _read_tensor(tensor: dict[str, Any], stored: bytes, position: int) -> tuple[np.ndarray, int]:
    """The tensor that starts at `position`, and how many bytes it fills."""
    scaling = tensor.get("quantization", {"dtype": tensor["dtype"]})
    dtype = np.dtype(scaling["dtype"]).newbyteorder("<")
    if scaling["dtype"] not in ("float32", "uint8"):
        raise ValueError(f"{tensor['name']}: numbers are stored as {scaling['dtype']}, expected float32 or uint8")
    count = math.prod(tensor["shape"])
    values = np.frombuffer(stored, dtype, count, position)
    if "scale" in scaling:
        values = values * np.float64(scaling["scale"]) + scaling["min"]
    return values.reshape(tensor["shape"]).astype(np.float32), count * dtype.itemsize
