"""Samples in memory or read on demand, taken a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchnet.errors import DataError

Inputs = Tensor | np.ndarray | tuple[Tensor, ...] | Mapping[str, Tensor] | Sequence[Tensor]
"""K samples: a tensor or array (K, ...); a tuple or mapping of them; or a sequence of K tensors read on demand."""


def count_samples(inputs: Inputs) -> int:
    """Return K.

    Raises:
        DataError: no samples, or tensors of different length.
    """
    if isinstance(inputs, Tensor):
        lengths = {inputs.shape[0] if inputs.dim() else 0}
    elif isinstance(inputs, Mapping):
        lengths = {len(value) for value in inputs.values()}
    elif isinstance(inputs, tuple):
        lengths = {len(value) for value in inputs}
    else:
        lengths = {len(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"inputs must hold the same number of samples, at least one; found {sorted(lengths) or 'none'}")
    return lengths.pop()


def take(inputs: Inputs, index: Tensor, device: torch.device) -> Any:
    """Gather the samples at `index` as one batch on `device`; images (4 dimensions) in channels-last memory order."""
    if isinstance(inputs, Mapping):
        return {name: take(value, index, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(take(value, index, device) for value in inputs)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    batch = inputs[index] if isinstance(inputs, Tensor) else torch.stack([inputs[i] for i in index.tolist()])
    batch = batch.to(device)
    return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


def batches(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Indices 0..count-1 in order, in pieces of at most `batch_size`."""
    return torch.split(torch.arange(count), batch_size)
