"""Which sample holds NaN: looked for where a result is not finite, so that the error names the cause."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from branchnet.data.collation import leaves
from branchnet.data.samples import Batch, Samples


def first_not_finite(samples: Samples, batch_size: int = 64) -> str:
    """Look for the first sample with NaN or infinite values.

    Args:
        samples: they are read once more, up to that sample.
        batch_size: samples read at once.

    Returns:
        `sample 7 (photos/7.png) holds NaN or infinite values`; empty where all are finite.
    """
    before = 0
    for batch in samples.batches(batch_size, seed=0):
        if (position := _first(batch)) is not None:
            number = before + position if batch.index is None else int(batch.index[position])
            return _named(number, samples)
        before += len(batch)
    return ""


def not_finite_in(batch: Batch) -> str:
    """Say which sample of a batch holds NaN or infinite values; empty where all are finite."""
    position = _first(batch)
    if position is None:
        return ""
    return _named(position) if batch.index is None else _named(int(batch.index[position]))


def _first(batch: Batch) -> int | None:
    rows = [_wrong_rows(leaf) for leaf in leaves(batch.inputs) if leaf.is_floating_point() and leaf.dim()]
    found = [int(wrong.nonzero()[0]) for wrong in rows if bool(wrong.any())]
    return min(found, default=None)


def _wrong_rows(leaf: Tensor) -> Tensor:
    return ~torch.isfinite(leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None]).all(1)


def _named(number: int, samples: Samples | None = None) -> str:
    source: Any = None if samples is None else samples.source
    position = number
    while isinstance(source, Subset):
        source, position = source.dataset, source.indices[position]
    paths = getattr(source, "paths", ())
    file = f" ({paths[position]})" if position < len(paths) else ""
    return f"sample {number}{file} holds NaN or infinite values"
