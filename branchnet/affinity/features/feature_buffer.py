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

from branchnet.affinity.features.memory_plan import Chunk


@dataclass(frozen=True)
class Kept:
    """Features (K, F) of all probe inputs.

    Attributes:
        batches: (B, F) each, K rows in all.
        reference: (F,), to be added to every row, or None.
    """

    batches: Sequence[Tensor]
    reference: Tensor | None = None


class Keeper:
    """Collects the features of several chunks, batch by batch.

    Args:
        chunks: what to keep.
        references: for every chunk, what is subtracted from all rows, (F,), if the chunk is kept in lower precision.
        copied: whether everything is copied, for stages that are known to write to what they return.
    """

    def __init__(self, chunks: Sequence[Chunk], references: Sequence[Tensor], *, copied: bool) -> None:
        self._chunks = chunks
        self._references = references
        self._copied = copied
        self._batches: list[list[Tensor]] = [[] for _ in chunks]
        self._borrowed: list[tuple[Tensor, int]] = []
        self._batch_of: dict[int, int] = {}
        self._shared_memory = False

    def keep(self, number: int, rows: Tensor, batch: int) -> None:
        """Add what a batch gives for chunk `number`: all features, (B, F)."""
        chunk = self._chunks[number]
        kept = rows[:, chunk.start : chunk.stop]
        if chunk.rounded:
            # bfloat16 has 8 bits: of features far from zero it would keep the offset and lose what tells inputs apart.
            kept = (kept - self._references[number][chunk.start : chunk.stop]).to(chunk.kept_as)
        elif self._copied or chunk.overwritten or not _stands_alone(kept):
            kept = kept.clone(memory_format=torch.contiguous_format)
        else:
            self._shared_memory |= self._batch_of.setdefault(kept.data_ptr(), batch) != batch
            self._borrowed.append((kept, kept._version))
        self._batches[number].append(kept)

    def take(self) -> list[Kept]:
        """What was kept for every chunk; the keeper lets go of it."""
        taken = []
        for chunk, reference, batches in zip(self._chunks, self._references, self._batches, strict=True):
            taken.append(Kept(batches, reference[chunk.start : chunk.stop] if chunk.rounded else None))
        self._batches, self._borrowed = [], []
        return taken

    @property
    def intact(self) -> bool:
        """Whether everything still holds what it held when it was kept."""
        return not self._shared_memory and all(kept._version == version for kept, version in self._borrowed)


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written to; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _stands_alone(tensor: Tensor) -> bool:
    """Whether keeping the tensor keeps no more memory than its own, and writing to it would be noticed."""
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return alone and tensor.is_contiguous() and not tensor.is_inference()
