"""Inner products of the rows of one block of features with each other, of which only one half is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from branchnet.utils.installed_torch import torch_internals

# Wide enough that a product uses the vector units well, narrow enough that little is computed below the diagonal.
_PANEL = 64
_CUDA_PANEL = 512
_NARROW_VECTORS = ("Haswell", "Zen", "Sandybridge", "Nehalem", "Prescott")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in the precision of their factors, whatever the caller has allowed networks (TF32, autocast)."""
    onednn: Any = torch.backends.mkldnn
    backends: list[Any] = [torch.backends.cuda.matmul, onednn.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def add_symmetric_product(total: Tensor, block: Tensor) -> None:
    """Add `block @ block.T` to the upper triangle of `total`; what is below the diagonal becomes meaningless.

    On a CPU numpy computes half of the product, as it sees that it is symmetric (it calls BLAS syrk). Its OpenBLAS does
    not know every processor, though; where it falls back to vectors half as wide as the processor's, oneDNN multiplies
    panels.

    Args:
        total: (K, K).
        block: contiguous, (K, width), in float32 or float64.
    """
    if block.device.type != "cpu":
        add_panels(total, block, lambda left, right: left @ right.T, _CUDA_PANEL)
    elif block.dtype == torch.float32 and _onednn_is_wider():
        add_panels(total, block, _onednn_product, _PANEL)
    else:
        array = block.numpy()
        total += torch.from_numpy(array @ array.T)


def add_panels(total: Tensor, block: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], panel: int) -> None:
    """The same from the products of every panel of rows with the rows up to its end; the first may be narrower.

    Args:
        total: (K, K).
        block: (K, width).
        multiply: (M, width), (P, width) -> (M, P).
        panel: rows in a panel.
    """
    start = 0
    for stop in range(len(block) % panel or panel, len(block) + 1, panel):
        total[:stop, start:stop] += multiply(block[:stop], block[start:stop])
        start = stop


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix that has this upper triangle."""
    return upper.triu() + upper.triu(1).T


def _onednn_product(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch_internals.linear_operator(left, right, None, "none", [], "")
    return product


@cache
def _onednn_is_wider() -> bool:
    """Whether torch computes with AVX-512 and has oneDNN, while numpy's OpenBLAS computes with narrower vectors.

    Without the package threadpoolctl, which knows what OpenBLAS computes with, numpy multiplies.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return False
    libraries: list[dict[str, Any]] = threadpool_info()
    kernels = [one.get("architecture") for one in libraries if one["internal_api"] == "openblas"]
    return bool(kernels) and all(kernel in _NARROW_VECTORS for kernel in kernels)
