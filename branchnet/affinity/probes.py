"""The probe: one fixed sequence of inputs, the same for every network, held or checked by content at each reading."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from branchnet.data.arguments import check_whole
from branchnet.data.call_forms import CallForm, Inputs
from branchnet.data.collation import channels_last, gather, leaves, map_tensors
from branchnet.data.finite_inputs import first_not_finite
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import AffinityError, DataError
from branchnet.stages.interface import explaining

MINIMUM_INPUTS = 3
HELD_BYTES = 2**30
"""Inputs of so many bytes are kept, so that images are read from files once for all networks and not once for each."""
COMPARED_AGAIN = 8
"""Inputs that are read a second time before the rest is kept, to notice random augmentation and shuffling."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A probe that has been read once.

    Attributes:
        samples: the reader of its inputs.
        batch_size: inputs per batch where the samples do not come in batches.
        sizes: inputs in every batch.
        content: hash of all inputs; it does not depend on how they are divided into batches.
        checksums: of the tensors of every batch, by which later readings are compared with the first.
        example: the first two inputs.
        held: the batches, where they were kept; None where they are read again for every network.
        channels_last: whether batches give images in channels-last memory order.
    """

    samples: Samples
    batch_size: int
    sizes: tuple[int, ...]
    content: str
    checksums: tuple[tuple[int, ...], ...]
    example: Inputs
    held: tuple[Inputs, ...] | None = None
    channels_last: bool = False

    @property
    def inputs(self) -> int:
        """K, the number of inputs."""
        return sum(self.sizes)

    def batches(self, reader: str) -> Iterator[Inputs]:
        """The batches as they were first read: those that are held, else read again and each compared.

        Raises:
            DataError: a batch differs, or there are more or fewer; the message names `reader`.
        """
        yield from map(channels_last, self._read(reader)) if self.channels_last else self._read(reader)

    def _read(self, reader: str) -> Iterator[Inputs]:
        if self.held is not None:
            yield from self.held
            return
        count = 0
        for batch in self.samples.batches(self.batch_size):
            if count >= len(self.checksums) or _checksums(batch.inputs) != self.checksums[count]:
                raise _changed(count, f"for {reader}")
            count += 1
            yield batch.inputs
        if count != len(self.checksums):
            raise DataError(
                f"the probe changed: {count} batches were read for {reader}, {len(self.checksums)} at first; expected "
                "an iterable that starts again for every network"
            )


def read_probe(source: Source, batch_size: int, form: CallForm | None = None, *, fewest: int = MINIMUM_INPUTS) -> Probe:
    """Read the probe once: count its inputs and fix its content.

    Args:
        source: K samples, in whatever `branchnet.data.read_samples` takes; labels with them are dropped.
        batch_size: of inputs that do not come in batches.
        form: what the networks take.
        fewest: inputs that there must be; similarities need three.

    Raises:
        AffinityError: fewer inputs, or a batch size that is not a whole number of 1 or more.
        DataError: inputs that cannot be read, can be read only once, or come in another order each time.
    """
    check_whole(AffinityError, batch_size=batch_size)
    samples = read_samples(source, form)
    if samples.shuffled:
        raise DataError(
            "the probe is a DataLoader that shuffles; expected the same inputs in the same order for every network: "
            "make it with shuffle=False, or pass its data set"
        )
    hasher, sizes, checksums, example = _Hasher(), [], [], None
    # Other iterables may hold their batches in memory themselves; they are read again, and compared each time.
    fixed = samples.by_number or isinstance(samples.source, DataLoader)
    held: list[Inputs] | None = [] if fixed else None
    size = 0
    for batch in samples.batches(batch_size):
        if example is None:
            example = gather(batch.inputs, slice(0, 2))
            _say_dropped(batch, form)
        sizes.append(len(batch))
        hasher.add(batch.inputs)
        checksums.append(_checksums(batch.inputs))
        size += sum(leaf.nbytes for leaf in leaves(batch.inputs))
        if held is not None:
            held.append(batch.inputs)
        if size > HELD_BYTES:
            held = None
    if example is None or sum(sizes) < fewest:
        raise AffinityError(f"the probe has {sum(sizes)} inputs; at least {fewest} are needed, 500 are usual")
    if held is not None:
        _compare_again(samples, held[0], batch_size)
    return Probe(
        samples,
        batch_size,
        tuple(sizes),
        hasher.digest(),
        tuple(checksums),
        example,
        None if held is None else tuple(held),
    )


@contextmanager
def blaming_inputs(probe: Probe, network: nn.Module) -> Iterator[None]:
    """Say of an error what about the inputs explains it: which one holds NaN, or how all differ from the example.

    Args:
        probe: the inputs.
        network: one of those that they are run on.

    Yields:
        Nothing.

    Raises:
        AffinityError: what was raised inside, or in place of it where inputs of another form cannot be run.
    """
    interface = getattr(network, "interface", None)
    known = interface is not None
    try:
        with explaining(probe.example, interface, AffinityError, "the networks") if known else nullcontext():
            yield
    except AffinityError as error:
        if found := first_not_finite(probe.samples, probe.batch_size):
            raise AffinityError(f"{found}: {error}") from error
        raise


def on_device(batch: Inputs, device: torch.device) -> Any:
    """A copy of the batch on `device`: a network that works in place never touches the probe."""
    return map_tensors(lambda tensor: tensor.to(device, copy=True), batch)


def _compare_again(samples: Samples, first: Inputs, batch_size: int) -> None:
    """Raise DataError where the first inputs are others when they are read once more."""
    # By a seed of its own, as readings that start from the same random state augment in the same way.
    again = next(samples.first(COMPARED_AGAIN, min(COMPARED_AGAIN, batch_size), seed=1), None)
    if again is None or _checksums(again.inputs) != _checksums(gather(first, slice(0, len(again)))):
        raise _changed(0, "a second time")


def _changed(batch: int, reader: str) -> DataError:
    return DataError(
        f"the probe changed: batch {batch}, as read {reader}, is not the one first read; expected the same inputs "
        "in the same order for every network: switch shuffling and random augmentation off"
    )


def _say_dropped(batch: Batch, form: CallForm | None) -> None:
    if batch.dropped:
        level = logging.INFO if form is not None and form.certain else logging.WARNING  # a guess may be wrong
        logger.log(level, "the samples of the probe hold more than inputs; the rest is taken for labels and dropped")


def _checksums(batch: Inputs) -> tuple[int, ...]:
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

    def add(self, batch: Inputs) -> None:
        for index, leaf in enumerate(leaves(batch)):
            if index == len(self._running):
                self._running.append(hashlib.sha256(f"{leaf.dtype}{tuple(leaf.shape[1:])}".encode()))
            self._running[index].update(_bytes_of(leaf))

    def digest(self) -> str:
        return hashlib.sha256(b"".join(one.digest() for one in self._running)).hexdigest()
