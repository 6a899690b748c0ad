"""Tensors named and hashed: their form in a few words, and a checksum of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, form and bytes of each tensor.

    One tensor after the other is read; none is copied.

    Args:
        tensors: contiguous CPU tensors with their names; the order counts.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {described(tensor)}\n".encode())
        # As bytes: numpy has no bfloat16, and equal bytes are what is asked for, NaN included.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def described(tensor: Tensor) -> str:
    """Shape and type, e.g. `(3, 4) float32`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
