"""What can be seen of a DataLoader before it is read: its order, and how many samples it gives."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler


def shuffles(loader: DataLoader[Any]) -> bool:
    """Whether its sampler is one that gives another order each time."""
    sampler = _sampler(loader)
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)


def in_order(loader: DataLoader[Any]) -> bool:
    """Whether it reads a data set from the first sample to the last, as far as can be seen."""
    if not getattr(loader, "in_order", True):  # batches come as its workers finish them
        return False
    if isinstance(loader.dataset, IterableDataset):
        return loader.num_workers <= 1  # several workers take turns, each with a stream of its own
    plain = loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler
    return plain and isinstance(_sampler(loader), SequentialSampler)


def count_in(loader: DataLoader[Any]) -> int | None:
    """How many samples it gives; None where that is unknown."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler, size = _sampler(loader), loader.batch_sampler.batch_size
    if not isinstance(sampler, Sized):
        return None
    return len(sampler) // size * size if loader.batch_sampler.drop_last else len(sampler)


def is_divided(loader: DataLoader[Any]) -> bool:
    """Whether each process reads samples of its own, as a DistributedSampler draws them."""
    sampler = _sampler(loader)
    return isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1


def _sampler(loader: DataLoader[Any]) -> Any:
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The generators of its own that it, its sampler or its batch sampler draws from, each once."""
    holders: list[Any] = [loader, loader.batch_sampler, loader.sampler]
    for holder in holders:
        if (inner := getattr(holder, "sampler", None)) is not None and all(inner is not one for one in holders):
            holders.append(inner)
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
