"""Which batch each step of training is given, decided by the seed alone, also where training is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from branchnet.data.loaders import is_divided
from branchnet.data.sample_seeds import set_epoch
from branchnet.data.samples import Batch, Samples
from branchnet.errors import DataError, TrainingError
from branchnet.utils.random_state import mixed_seed

Mix: TypeAlias = Literal["max_size_cycle", "round_robin", "proportional"]
"""How data sets of several tasks are drawn from: `max_size_cycle`: every step takes a batch of each; `round_robin`:
each step of the next task; `proportional`: each step of a task drawn by the sizes of the data sets."""


def sample_indices(step: int, samples: int, batch_size: int, seed: int) -> Tensor:
    """Return the indices of batch number `step`: each epoch is a permutation made from (seed, epoch).

    They depend on nothing that came before, so a run that resumes draws the batches that it would have drawn. Samples
    that do not fill an epoch's last batch are left out of that epoch.
    """
    batch_size = min(batch_size, samples)
    per_epoch = samples // batch_size
    epoch, position = divmod(step, per_epoch)
    return epoch_order(epoch, samples, seed)[position * batch_size : (position + 1) * batch_size]


def epoch_order(epoch: int, samples: int, seed: int) -> Tensor:
    """Return the order of all samples in an epoch.

    Args:
        epoch: its number.
        samples: how many there are.
        seed: of the orders.
    """
    # Far apart, so that epoch e of a seed is not epoch e - 1 of the next one; below 2^63, which every torch takes.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(samples, generator=generator)


class BatchOrder:
    """The batch of each step, for steps that follow one another.

    Samples that have numbers are drawn without replacement, epoch after epoch; what a data set draws for one of them
    depends on (seed, epoch, number) alone, whatever the batch, the process and the step that was resumed at. Others
    are read in the order of their source, over and over; shuffling and augmentation draw from (seed, epoch) alone. A
    run that is resumed reads past the batches of the steps that are done.

    Args:
        samples: what is drawn from.
        batch_size: samples in a batch.
        seed: of the order.
        numbers: which samples are drawn from; None: all.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, numbers: Tensor | None = None) -> None:
        self.samples, self.batch_size, self.seed, self.numbers = samples, batch_size, seed, numbers
        self._step = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._batches = _epochs(samples, batch_size, seed)
        self._divided = isinstance(samples.source, DataLoader) and is_divided(samples.source)

    def __call__(self, step: int) -> Batch:
        """The batch of this step, which comes after that of the call before."""
        if self.samples.by_number:
            count = self.samples.known_count if self.numbers is None else len(self.numbers)
            size = min(self.batch_size, count)
            epoch, position = divmod(step, count // size)
            if epoch != self._order[0]:
                self._order = (epoch, epoch_order(epoch, count, self.seed))
            index = self._order[1][position * size : (position + 1) * size]
            set_epoch(self.samples.source, epoch)
            seed = mixed_seed(self.seed, epoch)
            return self.samples.take(index if self.numbers is None else self.numbers[index], seed)
        while self._step < step:
            next(self._batches)
            self._step += 1
        self._step += 1
        return replace(next(self._batches), own_share=self._divided)


class MixedOrder:
    """Batches of several tasks, each with data of its own.

    Args:
        orders: for each task the order of its batches.
        mix: how the tasks follow one another.
        sizes: how many samples each task has, where `mix` is proportional.
        seed: of the tasks that are drawn.

    Raises:
        TrainingError: an unknown mix.
    """

    def __init__(self, orders: Mapping[str, BatchOrder], mix: Mix, sizes: Sequence[int | None], seed: int) -> None:
        if mix not in get_args(Mix):
            raise TrainingError(f"mix={mix!r}; expected one of {', '.join(get_args(Mix))}")
        if mix == "proportional" and None in sizes:
            unknown = [task for task, size in zip(orders, sizes, strict=True) if size is None]
            raise TrainingError(f"mix='proportional', and how many samples {unknown} have is unknown; {_OTHER_MIX}")
        self.orders, self.mix, self.seed = orders, mix, seed
        self.shares = torch.tensor([float(size or 0) for size in sizes])
        self._taken = dict.fromkeys(orders, 0)
        self._step = 0

    def __call__(self, step: int) -> dict[str, Batch]:
        """The batches of this step by task."""
        while self._step < step:  # a run that is resumed
            for task in self._tasks(self._step):
                self._taken[task] += 1
            self._step += 1
        self._step += 1
        found = {}
        for task in self._tasks(step):
            found[task] = self.orders[task](self._taken[task])
            self._taken[task] += 1
        return found

    def _tasks(self, step: int) -> Sequence[str]:
        tasks = list(self.orders)
        if self.mix == "max_size_cycle":
            return tasks
        if self.mix == "round_robin":
            return [tasks[step % len(tasks)]]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        return [tasks[int(torch.multinomial(self.shares, 1, generator=generator))]]


_OTHER_MIX = "expected data sets that are read by number, or another mix"


def _epochs(samples: Samples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Read the samples without end; a last batch that was cut short here is left out, as it may be a single sample."""
    for epoch in count():
        set_epoch(samples.source, epoch)
        batches: Any = samples.batches(batch_size, (seed * 1_000_003 + epoch) % 2**63)
        if (first := next(batches, None)) is None:
            raise DataError(f"no batch was read in epoch {epoch}; expected an iterable that starts again each time")
        yield first
        for batch in batches:
            if samples.kind == "batched" or len(batch) == batch_size:
                yield batch
