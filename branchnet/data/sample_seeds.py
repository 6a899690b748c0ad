"""What samples draw at random as they are read: decided by a seed, the epoch and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Subset

from branchnet.utils.random_state import mixed_seed, seeded, start_generators


def set_epoch(source: Any, epoch: int) -> None:
    """Tell data sets that change from epoch to epoch, as augmented ones and distributed samplers, which one begins.

    Args:
        source: a data set, a loader, or a part of a data set; others are not told.
        epoch: 0 or more.
    """
    batches = getattr(source, "batch_sampler", None)
    samplers = {id(one): one for one in (getattr(source, "sampler", None), getattr(batches, "sampler", None))}
    for one in (source, batches, *samplers.values(), getattr(source, "dataset", None)):
        if callable(tell := getattr(one, "set_epoch", None)):
            tell(epoch)


def fetched(source: Any, numbers: Sequence[int], seed: int | None = None) -> list[Any]:
    """The samples of these numbers.

    Args:
        source: what is read by number; one with `__getitems__` is asked for all at once, as a DataLoader does.
        numbers: which ones.
        seed: each sample's random numbers, those of torch, NumPy and `random`, start at (seed, its number); where all
            are asked for at once, at those of the first. None: they go on from where they are.

    Returns:
        the samples, in the order of `numbers`.
    """
    if seed is None:
        fetch = getattr(source, "__getitems__", None)
        return list(fetch(numbers)) if fetch else [source[number] for number in numbers]
    with seeded(mixed_seed(seed, numbers[0])):
        if _fetches_several(source):
            return list(source.__getitems__(numbers))
        found = []
        for number in numbers:
            start_generators(mixed_seed(seed, number))
            found.append(source[number])
        return found


def _fetches_several(source: Any) -> bool:
    """Whether a data set reads several samples in a way of its own; a part of a data set has the method anyhow."""
    while isinstance(source, Subset):
        source = source.dataset
    return hasattr(source, "__getitems__")
