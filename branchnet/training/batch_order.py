"""Which batch each step of training is given, decided by the seed alone, also where training is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from branchnet.data.samples import Batch, Samples
from branchnet.errors import DataError
from branchnet.training.loop import sample_indices
from branchnet.utils.random_state import seeded


class BatchOrder:
    """The batch of each step, for steps that follow one another.

    Samples that have numbers are drawn without replacement, epoch after epoch. Others are read in the order of their
    source, over and over; a loader that shuffles does so by the seed. A run that is resumed reads past the batches of
    the steps that are done.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._step = 0
        self._batches = self._read()

    def __call__(self, step: int) -> Batch:
        """The batch of this step, which is not before that of the call before."""
        if self.samples.by_number and self.samples.count is not None:
            return self.samples.take(sample_indices(step, self.samples.count, self.batch_size, self.seed))
        with torch.random.fork_rng(devices=[]):
            while self._step < step:
                next(self._batches)
                self._step += 1
        self._step += 1
        return next(self._batches)

    def _read(self) -> Iterator[Batch]:
        for epoch in count():
            batches = self.samples.batches(self.batch_size)
            with seeded((self.seed * 1_000_003 + epoch) % 2**63):  # a loader draws its order before its first batch
                first = next(batches, None)
            if first is None:
                raise DataError(f"no batch was read in epoch {epoch}; expected an iterable that starts again each time")
            yield first
            yield from self._full(batches)

    def _full(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Leave out the last batch of an epoch where it was cut short here: BatchNorm could not train on one sample."""
        for batch in batches:
            if self.samples.kind == "batched" or len(batch) == self.batch_size:
                yield batch
