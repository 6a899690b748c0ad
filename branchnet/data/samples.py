"""The one reader of samples: whatever holds them, they come as batches of inputs and labels, with their numbers.

The documentation's page "What you can pass as data" says the same to users.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Number
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from branchnet.data.call_forms import CallForm, Inputs, described, is_tuple, separate
from branchnet.data.collation import (
    as_batch,
    as_labels,
    collate,
    collate_labels,
    first_size,
    gather,
    leaves,
    length,
    with_images,
)
from branchnet.data.images import ImageFolder
from branchnet.data.loaders import count_in, generators_of, in_order, shuffles
from branchnet.data.sample_seeds import fetched
from branchnet.errors import DataError
from branchnet.utils.random_state import with_own_state

Source: TypeAlias = (
    "Tensor | np.ndarray | tuple[Any, ...] | Mapping[str, Any] | Sequence[Any] | Dataset[Any] | DataLoader[Any] "
    "| Iterable[Any] | Samples"
)
"""What users pass as data: whatever holds K samples; see `read_samples`."""

Kind: TypeAlias = Literal["memory", "numbered", "streamed", "batched"]

_EXPECTED = "expected a tensor, an array, a tuple or dict of them, a list of samples, a Dataset or a DataLoader"


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: what a network is called with, on the device where the source has it.
        labels: what the source holds next to the inputs, stacked as they are; None where it holds none or they are not
            read.
        index: the numbers of the samples in the source, or their positions in the order of reading; None where a
            loader's order is not known.
        dropped: labels are there, and were not read.
        own_share: of several processes this one alone has these samples, as a DistributedSampler draws them.
    """

    inputs: Inputs
    labels: Any = None
    index: Tensor | None = None
    dropped: bool = False
    own_share: bool = False

    def __len__(self) -> int:
        """How many samples there are."""
        return length(self.inputs)


@dataclass(frozen=True)
class Samples:
    """Samples that are read a batch at a time; `read_samples` makes them.

    Attributes:
        source: what holds them.
        kind: `"memory"`: tensors that hold all of them; `"numbered"`: read by number; `"streamed"`: read one by one in
            the source's order; `"batched"`: read in the source's own batches.
        count: how many, where that is known.
        form: what the network takes.
        with_labels: whether labels are read, too.
        fixed: whether each reading is known to give the same.
    """

    source: Any
    kind: Kind
    count: int | None
    form: CallForm
    with_labels: bool = False
    fixed: bool = False

    @property
    def known_count(self) -> int:
        """How many samples there are.

        Raises:
            DataError: that is unknown.
        """
        if self.count is None:
            raise DataError(f"how many samples {described(self.source)} holds is unknown; {_BY_NUMBER}")
        return self.count

    @property
    def by_number(self) -> bool:
        """Whether samples can be taken by their numbers."""
        return self.kind in ("memory", "numbered")

    @property
    def shuffled(self) -> bool:
        """Whether a loader is seen to give another order each time."""
        return isinstance(self.source, DataLoader) and shuffles(self.source)

    def take(self, index: Tensor, seed: int | None = None) -> Batch:
        """The samples of these numbers as one batch.

        Args:
            index: numbers from 0 to K - 1, (B,).
            seed: with its number it decides what a sample draws at random, whatever the batch that it is in; None:
                random numbers go on from where they are.

        Returns:
            The batch, its samples in the order of `index`.

        Raises:
            DataError: samples without numbers, or of different form.
        """
        if self.kind == "memory":
            return self._batch(gather(self.source, index), index)
        if self.kind != "numbered":
            raise DataError(f"the samples are {described(self.source)}, read in its own order; {_BY_NUMBER}")
        return self._stacked(fetched(self.source, index.tolist(), seed), index)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """All samples in order, each read once; the random state outside, and that of a loader, is left as it was.

        Args:
            batch_size: samples in each batch but the last; a loader and a list of batches bring their own.
            seed: of shuffling and random augmentation; None: they start where torch's random state is.

        Yields:
            The batches.

        Raises:
            DataError: samples of different form, or of one that the network does not take.
        """
        if self.kind == "memory":
            for start in range(0, self.known_count, batch_size):
                index = torch.arange(start, min(start + batch_size, self.known_count))
                yield self._batch(gather(self.source, slice(start, start + batch_size)), index)
        elif self.kind == "numbered":
            taken = map(self.take, torch.arange(self.known_count).split(batch_size))
            yield from with_own_state(taken, seed)
        else:
            generators = generators_of(self.source) if isinstance(self.source, DataLoader) else []
            yield from with_own_state(self._in_their_order(batch_size), seed, generators)

    def first(self, count: int, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """Read the first samples in batches.

        Args:
            count: how many; without numbers, whole batches are read until there are that many.
            batch_size: samples of a batch where the source does not bring its own.
            seed: as `batches` takes it.

        Returns:
            The batches, one after the other.
        """
        if self.by_number:
            taken = map(self.take, torch.arange(min(count, self.known_count)).split(batch_size))
            yield from with_own_state(taken, seed)
            return
        for batch in self.batches(batch_size, seed):
            yield batch
            count -= len(batch)
            if count <= 0:
                return

    def read_batch(self, content: Any) -> Batch:
        """One batch as a loader, or several samples in memory, hold it.

        Args:
            content: inputs, (inputs, labels), or a mapping of them, stacked.

        Returns:
            The batch.

        Raises:
            DataError: inputs of a form that the network does not take.
        """
        return self._batch(content, None)

    def subset(self, numbers: Sequence[int]) -> Samples:
        """The samples of these numbers; those in memory are copied.

        Args:
            numbers: which ones, in which order.

        Returns:
            Their reader.

        Raises:
            DataError: samples without numbers.
        """
        if not self.by_number:
            raise DataError(f"the samples are {described(self.source)} and cannot be divided; {_BY_NUMBER}")
        if self.kind == "memory":
            part: Any = gather(self.source, torch.tensor(numbers))
        else:
            part = Subset(self.source, numbers)
        return replace(self, source=part, count=len(numbers))

    def _batch(self, content: Any, index: Tensor | None) -> Batch:
        whole = self.kind == "memory" and not self.with_labels  # tensors in memory are what a network is called with
        inputs, labels = separate(content, self.form, whole=whole)
        return self._finished(as_batch(inputs, self.form), as_labels(labels, self.form), index)

    def _stacked(self, values: Sequence[Any], index: Tensor | None) -> Batch:
        """Labels are left out before they are stacked, as those of detection, for one, could not be."""
        pairs = [separate(value, self.form) for value in values]
        labels = [label for _, label in pairs]
        stacked = collate_labels(labels, self.form) if self.with_labels else labels[0]
        return self._finished(collate([inputs for inputs, _ in pairs], self.form), stacked, index)

    def _finished(self, inputs: Inputs, labels: Any, index: Tensor | None) -> Batch:
        dropped = labels is not None and not self.with_labels
        return Batch(with_images(inputs, self.form), None if dropped else labels, index, dropped)

    def _in_their_order(self, batch_size: int) -> Iterator[Batch]:
        start = 0
        numbered = not isinstance(self.source, DataLoader) or in_order(self.source)
        contents = _pieces(self.source, batch_size) if self.kind == "streamed" else self.source
        for content in contents:
            batch = self._stacked(content, None) if self.kind == "streamed" else self._batch(content, None)
            if numbered:
                batch = replace(batch, index=torch.arange(start, start := start + first_size(batch.inputs)))
            yield batch


def _pieces(stream: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """What a stream gives in lists of `size`; the last may be shorter."""
    items = iter(stream)
    while piece := list(islice(items, size)):
        yield piece


_BY_NUMBER = "expected samples that can be read by number: pass tensors or the Dataset itself"


def read_samples(
    source: Source,
    form: CallForm | None = None,
    *,
    labels: bool = False,
    lists: Literal["samples", "batches"] | None = None,
    once: bool = False,
) -> Samples:
    """Look at what a user passes as data, and say how its samples are read.

    Nothing but the first element of a list, or of a loader without batches, is read here.

    Args:
        source: K samples. In memory: a tensor or array (K, ...), or a tuple or mapping of them. By number: a list of
            samples, a `Dataset`, or whatever has a length and numbered items. In order: an `IterableDataset`, a
            `DataLoader`, or another iterable of batches that can be read again. A sample is a tensor, an array, a
            picture, (inputs, labels), or a mapping; see the page "What you can pass as data". Images of type uint8 are
            converted as `to_images` does.
        form: what the network takes.
        labels: read labels, too.
        lists: what the elements of a list are where the network's form does not say. None: samples if they have one
            number as label, or at most one dimension, or three as images do; batches otherwise.
        once: the samples are read once only, so that an iterator will do.

    Returns:
        The reader.

    Raises:
        DataError: what was given, and what to pass instead.

    >>> samples = branchnet.data.read_samples([(torch.zeros(3, 8, 8), 1), (torch.ones(3, 8, 8), 0)], labels=True)
    >>> batch = samples.take(torch.tensor([1, 0]))
    >>> batch.inputs.shape, batch.labels
    (torch.Size([2, 3, 8, 8]), tensor([0, 1]))
    """
    if isinstance(source, Samples):
        return replace(source, form=form or source.form, with_labels=labels)
    form = form or CallForm()
    _refuse_unreadable(source, once)
    if isinstance(source, Tensor | np.ndarray | tuple | Mapping):
        return _in_memory(source, form, labels)
    if isinstance(source, DataLoader):
        return Samples(source, _kind_of_loader(source, form), count_in(source), form, labels)
    if isinstance(source, IterableDataset):
        return Samples(source, "streamed", None, form, labels)
    if isinstance(source, list):
        return _from_list(source, form, labels, lists)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        if not (count := len(cast(Sized, source))):
            raise DataError(f"the samples are {described(source)} of length 0; expected at least one sample")
        return Samples(source, "numbered", count, form, labels, fixed=isinstance(source, ImageFolder))
    return Samples(source, "batched", None, form, labels)


def count_samples(source: Source) -> int:
    """K, where it is known without reading.

    Args:
        source: as `read_samples` takes it.

    Returns:
        How many samples there are.

    Raises:
        DataError: it is not.
    """
    return read_samples(source).known_count


def as_example(source: Source) -> Inputs:
    """What a network is called with once.

    Args:
        source: as `read_samples` takes it.

    Returns:
        Tensors, and tuples and mappings of them, as they are; a whole array; of a loader its first batch; of what is
        read one by one a batch of one sample.

    Raises:
        DataError: what cannot be read.
    """
    if isinstance(source, Tensor) or (isinstance(source, tuple | Mapping) and _holds_tensors(source)):
        return cast(Inputs, source)
    samples = read_samples(source)
    batch = next(samples.batches(samples.known_count if samples.kind == "memory" else 1), None)
    if batch is None:
        raise DataError(f"{described(source)} gave no batch; expected at least one sample")
    return batch.inputs


def _in_memory(source: Any, form: CallForm, labels: bool) -> Samples:
    tensors = as_batch(source, form)
    if not leaves(tensors) or not _holds_tensors(tensors):
        raise DataError(f"the samples are {described(source)}; {_EXPECTED}: pass one of its entries, or a list")
    return Samples(tensors, "memory", length(tensors), form, labels, fixed=True)


def _from_list(source: list[Any], form: CallForm, labels: bool, lists: Literal["samples", "batches"] | None) -> Samples:
    if not source and lists != "batches":
        raise DataError("the samples are an empty list; expected at least one sample")
    if not source or _are_batches(source[0], form, lists):
        sizes = [first_size(as_batch(separate(batch, form)[0], form)) for batch in source]
        return Samples(source, "batched", sum(sizes), form, labels, fixed=True)
    return Samples(source, "numbered", len(source), form, labels, fixed=True)


def _are_batches(element: Any, form: CallForm, lists: Literal["samples", "batches"] | None) -> bool:
    """Whether an element is a batch: by the dimensions that the network takes, else as the caller says."""
    inputs, labels = separate(element, form)
    found = leaves(as_batch(inputs, form))
    dims = found[0].dim() if found else 0
    if form.dims is not None and dims in (form.dims, form.dims - 1):
        return dims == form.dims
    if lists is not None:
        return lists == "batches"
    return dims not in (0, 1, 3) and not isinstance(labels, Number)


def _refuse_unreadable(source: Any, once: bool) -> None:
    if isinstance(source, str | bytes | os.PathLike):
        raise DataError(f"the samples are a path, {source!r}; {_EXPECTED}: branchnet.data.ImageFolder(path), say")
    if isinstance(source, Iterator) and not once:
        raise DataError(
            f"the samples are a {type(source).__name__}, which can be read once only, and they are read again; "
            f"{_EXPECTED}: pass list(...) of it, or an IterableDataset, which starts again for each reading"
        )
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset) and not hasattr(source, "__len__"):
        raise DataError(f"{described(source)} has no length; expected a Dataset with __len__, or an IterableDataset")
    if not (isinstance(source, Tensor | Iterable) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))):
        raise DataError(f"the samples are {described(source)}; {_EXPECTED}")


def _kind_of_loader(loader: DataLoader[Any], form: CallForm) -> Kind:
    """A loader without batches gives what its data set holds: samples, unless these are batches for the network."""
    if loader.batch_size is not None or loader.batch_sampler is not None:
        return "batched"
    first = next(with_own_state(loader, generators=generators_of(loader)), None)
    return "batched" if first is None or _are_batches(first, form, None) else "streamed"


def _holds_tensors(tree: Any) -> bool:
    """Whether there are tensors, and perhaps flags for the network, but nothing that would have to be read."""
    if isinstance(tree, Mapping) or is_tuple(tree):
        return all(map(_holds_tensors, tree.values() if isinstance(tree, Mapping) else tree))
    return tree is None or isinstance(tree, Tensor | bool | int | float | str)
