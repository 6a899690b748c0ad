"""Samples that training does not see, by which rates are chosen and the best state is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from branchnet.data.call_forms import CallForm
from branchnet.data.collation import leaves
from branchnet.data.finite_inputs import not_finite_in
from branchnet.data.sample_seeds import set_epoch
from branchnet.data.samples import Batch, Samples, Source, read_samples

SHARE = 10
"""One sample of so many is set aside; spread evenly, as data sets may be sorted."""
MOST, FEWEST = 256, 4
"""More say hardly anything new of a mean loss, and are measured again and again; fewer say too little."""
KEPT_BYTES = 2**29
"""Memory that held-out samples may take, which are read once then: 900 images of 224 pixels."""


@dataclass(frozen=True)
class HeldOutSamples:
    """Held-out samples, and what is left to train on.

    Attributes:
        batches: reads them, from the first again whenever it is called.
        judged_on: which samples they are; see `History`.
        numbers: of the samples that are left to train on; None: all.
    """

    batches: Callable[[], Iterator[Batch]]
    judged_on: str
    numbers: Tensor | None = None

    def not_finite(self) -> str:
        """Which sample holds NaN or infinite values; empty where none does."""
        return next(filter(None, map(not_finite_in, self.batches())), "")


class KeptBatches:
    """Batches that are read once and kept, where they take little enough memory.

    Args:
        read: reads them, from the first again whenever it is called.
        limit: bytes that are kept at most.
    """

    def __init__(self, read: Callable[[], Iterator[Batch]], limit: int = KEPT_BYTES) -> None:
        self.read, self.limit = read, limit
        self._kept: list[Batch] | None = None

    def __call__(self) -> Iterator[Batch]:
        """All batches, from the first."""
        return iter(self._kept) if self._kept is not None else self._first_time()

    def _first_time(self) -> Iterator[Batch]:
        kept: list[Batch] | None = []
        size = 0
        for batch in self.read():
            size += _bytes(batch.inputs) + _bytes(batch.labels)
            kept = [*kept, batch] if kept is not None and size <= self.limit else None
            yield batch
        self._kept = kept


def _bytes(content: Any) -> int:
    return sum(leaf.nbytes for leaf in leaves(content))


def given_samples(validation: Source, form: CallForm, batch_size: int, *, labels: bool) -> HeldOutSamples:
    """What a user has set aside.

    Args:
        validation: the samples.
        form: what the network takes.
        batch_size: samples that are judged at once.
        labels: whether they come with labels.

    Returns:
        all of them.
    """
    samples = read_samples(validation, form, labels=labels, lists="samples")

    def read() -> Iterator[Batch]:
        for batch in samples.batches(batch_size, seed=0):
            yield replace(batch, index=None)  # the numbers are not those of the samples to train on

    return HeldOutSamples(KeptBatches(read), "validation samples")


def set_aside(samples: Samples, batch_size: int) -> HeldOutSamples:
    """Set some of the samples aside; where they are few or cannot be read by number, judge by samples of training.

    Args:
        samples: all of them.
        batch_size: samples that are judged at once.

    Returns:
        a tenth of them, at most 256.
    """
    count = samples.count if samples.by_number else None
    if count is not None and count >= SHARE * FEWEST:
        held = min(MOST, count // SHARE)
        rows = torch.linspace(0, count - 1, held).round().long().unique()
        left = torch.ones(count, dtype=torch.bool)
        left[rows] = False
        part = samples.subset(rows.tolist())
        numbered = _with_numbers(part, rows, batch_size)
        return HeldOutSamples(KeptBatches(numbered), "held-out samples", left.nonzero()[:, 0])
    if count is not None:
        return HeldOutSamples(KeptBatches(partial(samples.batches, batch_size, seed=0)), "training samples")
    first = list(samples.first(MOST, batch_size, seed=0))
    return HeldOutSamples(lambda: iter(first), "training samples")


def _with_numbers(part: Samples, rows: Tensor, batch_size: int) -> Callable[[], Iterator[Batch]]:
    """The batches of a part, their samples numbered as in the whole, as labels that are given apart are."""

    def read() -> Iterator[Batch]:
        set_epoch(part.source, 0)
        for batch in part.batches(batch_size, seed=0):
            index = None if batch.index is None else rows[batch.index]
            yield Batch(batch.inputs, batch.labels, index, batch.dropped)

    return read
