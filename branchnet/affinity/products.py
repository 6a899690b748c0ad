"""Inner products of the rows of one block of features with each other, of which only one half is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from threadpoolctl import threadpool_info
from torch import Tensor

_PANEL = 64
_CUDA_PANEL = 512
_NARROW_VECTORS = ("Haswell", "Zen", "Sandybridge", "Nehalem", "Prescott")


def symmetric_product(block: Tensor) -> Tensor:
    """`block @ block.T`, (K, K), of a contiguous block (K, width) in float32 or float64.

    On a CPU numpy computes half of it, as it sees that the result is symmetric. Its OpenBLAS does not know every
    processor, though; where it falls back to vectors half as wide as the processor's, oneDNN multiplies panels.
    """
    if block.device.type != "cpu":
        return panelled_product(block, lambda left, right: left @ right.T, _CUDA_PANEL)
    if block.dtype == torch.float32 and _onednn_is_wider():
        return panelled_product(block, _onednn_product, _PANEL)
    array = block.numpy()
    return torch.from_numpy(array @ array.T)


def panelled_product(block: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], panel: int) -> Tensor:
    """`block @ block.T` from the products of every panel of rows with the rows up to its end, mirrored.

    multiply: (M, width), (P, width) -> (M, P).
    """
    count = len(block)
    result = block.new_empty(count, count)
    for start in range(0, count, panel):
        stop = min(start + panel, count)
        strip = multiply(block[:stop], block[start:stop])
        result[:stop, start:stop] = strip
        result[start:stop, :start] = strip[:start].T
    return result


def _onednn_product(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


@cache
def _onednn_is_wider() -> bool:
    """Whether torch computes with AVX-512 and has oneDNN, while numpy's OpenBLAS computes with narrower vectors."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    libraries: list[dict[str, Any]] = threadpool_info()
    kernels = [one.get("architecture") for one in libraries if one["internal_api"] == "openblas"]
    return bool(kernels) and all(kernel in _NARROW_VECTORS for kernel in kernels)
