"""The features of one pass over the probe, kept as the batches come.

What a stage returns is kept as it is wherever nothing else will write to it, as copying wide features takes time. A
stage that works in place is seen beforehand, on a few inputs; one that does so only now and then, or that returns the
same memory again for another batch, is seen afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .memory import Piece


class Keeper:
    """Collects the features of several pieces, batch by batch.

    Attributes:
        kept: for every piece, one tensor (B, width) per batch.
    """

    def __init__(self, pieces: Sequence[Piece], dtype: torch.dtype, *, copied: bool) -> None:
        self.kept: list[list[Tensor]] = [[] for _ in pieces]
        self._pieces = pieces
        self._dtype = dtype
        self._copied = copied
        self._borrowed: list[tuple[Tensor, int]] = []
        self._batch_of: dict[int, int] = {}
        self._shared_memory = False

    def keep(self, number: int, rows: Tensor, batch: int) -> None:
        """Add what a batch gives for piece `number`: all features, (B, F)."""
        piece = self._pieces[number]
        part = rows[:, piece.start : piece.stop]
        if self._copied or piece.overwritten or part.dtype != self._dtype or not _stands_alone(part):
            self.kept[number].append(part.to(self._dtype, copy=True).contiguous())
            return
        self._shared_memory |= self._batch_of.setdefault(part.data_ptr(), batch) != batch
        self._borrowed.append((part, part._version))
        self.kept[number].append(part)

    @property
    def intact(self) -> bool:
        """Whether everything still holds what it held when it was kept."""
        return not self._shared_memory and all(part._version == version for part, version in self._borrowed)


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written to; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _stands_alone(part: Tensor) -> bool:
    """Whether keeping the tensor keeps no more memory than its own, and writing to it would be noticed."""
    alone = part.untyped_storage().nbytes() == part.numel() * part.element_size()
    return alone and part.is_contiguous() and not part.is_inference()
