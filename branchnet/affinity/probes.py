"""The probe: one fixed sequence of inputs, the same for every network, checked by content each time it is read.

A batch is a tensor, or a tuple or dict of tensors whose first dimension counts inputs.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from branchnet.errors import AffinityError

Batch: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]

MINIMUM_INPUTS = 3


@dataclass(frozen=True)
class Probe:
    """A probe that has been read once.

    Attributes:
        source: the whole inputs as one batch, or an iterable of batches.
        batch_size: inputs per batch where `source` is one batch.
        sizes: inputs in every batch.
        content: hash of all inputs; it does not depend on how they are divided into batches.
        checksums: of the tensors of every batch, by which later readings are compared with the first.
        example: the first two inputs.
    """

    source: Any
    batch_size: int
    sizes: tuple[int, ...]
    content: str
    checksums: tuple[tuple[int, ...], ...]
    example: Batch

    @property
    def inputs(self) -> int:
        """K, the number of inputs."""
        return sum(self.sizes)

    def batches(self, reader: str) -> Iterator[Batch]:
        """The batches, each compared with the first reading.

        Raises:
            AffinityError: a batch differs, or there are more or fewer; the message names `reader`.
        """
        count = 0
        for batch in _batches(self.source, self.batch_size):
            if count >= len(self.checksums) or _checksums(batch) != self.checksums[count]:
                raise AffinityError(
                    f"the probe changed: batch {count}, as read for {reader}, is not the one first read. Every network "
                    "must see the same inputs in the same order; switch shuffling and random augmentation off"
                )
            count += 1
            yield batch
        if count != len(self.checksums):
            raise AffinityError(
                f"the probe changed: {count} batches were read for {reader}, {len(self.checksums)} at first"
            )


def read_probe(source: Any, batch_size: int) -> Probe:
    """Read the probe once: count its inputs and fix its content.

    source: tensor or array (K, ...); tuple or dict of them, a network's arguments; or a re-iterable of batches.

    Raises:
        AffinityError: fewer than three inputs, a source that can be read only once, or batches without tensors.
    """
    if batch_size < 1:
        raise AffinityError(f"batch_size is {batch_size}; at least 1 was expected")
    if isinstance(source, Iterator):
        raise AffinityError(
            f"the probe is a {type(source).__name__}, which can be read once only; every network reads it again, so "
            "pass a tensor, a list of batches or a loader"
        )
    hasher, sizes, checksums, example = _Hasher(), [], [], None
    for batch in _batches(source, batch_size):
        example = _slice(batch, 0, 2) if example is None else example
        sizes.append(batch_length(batch))
        hasher.add(batch)
        checksums.append(_checksums(batch))
    if example is None or sum(sizes) < MINIMUM_INPUTS:
        raise AffinityError(f"the probe has {sum(sizes)} inputs; at least {MINIMUM_INPUTS} are needed, 500 are usual")
    return Probe(source, batch_size, tuple(sizes), hasher.digest(), tuple(checksums), example)


def batch_length(batch: Batch) -> int:
    """Number of inputs in a batch."""
    lengths = {len(leaf) for leaf in leaves(batch) if leaf.dim()}
    if len(lengths) != 1:
        raise AffinityError(f"the tensors of a probe batch have first dimensions {sorted(lengths)}; one was expected")
    return lengths.pop()


def leaves(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in a fixed order."""
    if isinstance(batch, Tensor):
        return [batch]
    items = batch.values() if isinstance(batch, dict) else batch
    return [leaf for item in items if isinstance(item, (Tensor, tuple, dict)) for leaf in leaves(item)]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A copy of the batch on `device`: a network that works in place never touches the probe."""
    return _map(batch, lambda tensor: tensor.to(device, copy=True))


def _batches(source: Any, batch_size: int) -> Iterator[Batch]:
    if isinstance(source, (Tensor, np.ndarray, tuple, Mapping)):
        whole = as_batch(source)
        length = batch_length(whole)
        for start in range(0, length, batch_size):
            yield _slice(whole, start, min(start + batch_size, length))
    elif isinstance(source, Iterable):
        for batch in source:
            yield as_batch(batch)
    else:
        raise AffinityError(f"the probe is a {type(source).__name__}; a tensor, an array or batches were expected")


def as_batch(value: Any) -> Batch:
    """A batch from what a loader yields: arrays become tensors, a list the arguments of a call."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {str(key): _as_leaf(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = tuple(_as_leaf(item) for item in value)
        return items[0] if len(items) == 1 and isinstance(items[0], Tensor) else items
    raise AffinityError(
        f"a probe batch is a {type(value).__name__}; a tensor, or a tuple or dict of them, was expected"
    )


def _as_leaf(value: Any) -> Any:
    return as_batch(value) if isinstance(value, (Tensor, np.ndarray, Mapping, tuple, list)) else value


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return _map(batch, lambda tensor: tensor[start:stop] if tensor.dim() else tensor)


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: _map_leaf(item, change) for key, item in batch.items()}
    return tuple(_map_leaf(item, change) for item in batch)


def _map_leaf(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return _map(item, change) if isinstance(item, (Tensor, tuple, dict)) else item


def _checksums(batch: Batch) -> tuple[int, ...]:
    """One number for every tensor; quick, as every network's reading is checked."""
    shapes = [repr((leaf.dtype, tuple(leaf.shape))).encode() for leaf in leaves(batch)]
    return tuple(
        zlib.crc32(_bytes_of(leaf), zlib.crc32(shape)) for leaf, shape in zip(leaves(batch), shapes, strict=True)
    )


def _bytes_of(leaf: Tensor) -> memoryview:
    return leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class _Hasher:
    """Running content hash, one for each tensor of a batch, so that batch borders leave no trace."""

    def __init__(self) -> None:
        self._running: list[Any] = []

    def add(self, batch: Batch) -> None:
        for index, leaf in enumerate(leaves(batch)):
            if index == len(self._running):
                self._running.append(hashlib.sha256(f"{leaf.dtype}{tuple(leaf.shape[1:])}".encode()))
            self._running[index].update(_bytes_of(leaf))

    def digest(self) -> str:
        return hashlib.sha256(b"".join(one.digest() for one in self._running)).hexdigest()
