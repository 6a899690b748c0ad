"""The features of one pass over the probe, kept as the batches come.

What a stage returns is kept as it is wherever nothing else will write to it, as copying wide features takes time. A
stage that works in place is seen beforehand, on a few inputs; one that does so only now and then, or that returns the
same memory again for another batch, is seen afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchnet.affinity.features.memory_plan import Piece


@dataclass(frozen=True)
class Kept:
    """Features (K, F) of all probe inputs.

    Attributes:
        parts: (B, F) each, K rows in all.
        reference: (F,), to be added to every row, or None.
    """

    parts: Sequence[Tensor]
    reference: Tensor | None = None


class Keeper:
    """Collects the features of several pieces, batch by batch.

    references: for every piece, what is taken off all rows, (F,), if the piece is kept in lower precision.
    """

    def __init__(self, pieces: Sequence[Piece], references: Sequence[Tensor], *, copied: bool) -> None:
        self._pieces = pieces
        self._references = references
        self._copied = copied
        self._parts: list[list[Tensor]] = [[] for _ in pieces]
        self._borrowed: list[tuple[Tensor, int]] = []
        self._batch_of: dict[int, int] = {}
        self._shared_memory = False

    def keep(self, number: int, rows: Tensor, batch: int) -> None:
        """Add what a batch gives for piece `number`: all features, (B, F)."""
        piece = self._pieces[number]
        part = rows[:, piece.start : piece.stop]
        if piece.rounded:
            part = (part - self._references[number][piece.start : piece.stop]).to(piece.kept_as)
        elif self._copied or piece.overwritten or not _stands_alone(part):
            part = part.clone(memory_format=torch.contiguous_format)
        else:
            self._shared_memory |= self._batch_of.setdefault(part.data_ptr(), batch) != batch
            self._borrowed.append((part, part._version))
        self._parts[number].append(part)

    def take(self) -> list[Kept]:
        """What was kept for every piece; the keeper lets go of it."""
        taken = []
        for piece, reference, parts in zip(self._pieces, self._references, self._parts, strict=True):
            taken.append(Kept(parts, reference[piece.start : piece.stop] if piece.rounded else None))
        self._parts, self._borrowed = [], []
        return taken

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
