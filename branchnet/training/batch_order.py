"""Which batch each step of training is given, decided by the seed alone, also where training is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from branchnet.data.samples import Batch, Samples
from branchnet.errors import DataError
from branchnet.training.loop import sample_indices


class BatchOrder:
    """The batch of each step, for steps that follow one another.

    Samples that have numbers are drawn without replacement, epoch after epoch. Others are read in the order of their
    source, over and over; shuffling and augmentation draw from (seed, epoch) alone. A run that is resumed reads past
    the batches of the steps that are done.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._step = 0
        self._batches = _epochs(samples, batch_size, seed)

    def __call__(self, step: int) -> Batch:
        """The batch of this step, which comes after that of the call before."""
        if self.samples.by_number:
            return self.samples.take(sample_indices(step, self.samples.known_count, self.batch_size, self.seed))
        while self._step < step:
            next(self._batches)
            self._step += 1
        self._step += 1
        return next(self._batches)


def _epochs(samples: Samples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Read the samples without end; a last batch that was cut short here is left out, as it may be a single sample."""
    for epoch in count():
        batches = samples.batches(batch_size, (seed * 1_000_003 + epoch) % 2**63)
        if (first := next(batches, None)) is None:
            raise DataError(f"no batch was read in epoch {epoch}; expected an iterable that starts again each time")
        yield first
        for batch in batches:
            if samples.kind == "batched" or len(batch) == batch_size:
                yield batch
