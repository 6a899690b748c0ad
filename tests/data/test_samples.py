"""The reader of samples: the same samples from every container, in order, each read once, and never all at once."""

from __future__ import annotations

import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
    TensorDataset,
    get_worker_info,
)

from branchnet.data import to_images
from branchnet.data.call_forms import CallForm, separate
from branchnet.data.collation import leaves, placed
from branchnet.data.samples import Samples, as_example, count_samples, read_samples
from branchnet.errors import DataError

IMAGES = CallForm(positional=1, most=1, dims=4)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))


class Made(Dataset[Any]):
    """A data set of what a function makes of a number; counts how often each was asked for."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.count, self.make, self.reads = count, make, Counter[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return self.make(index)


class Stream(IterableDataset[Any]):
    """The same samples one by one."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        return (self.inner[index] for index in range(len(self.inner)))


class Batches:
    """An iterable of batches that is neither a list nor a loader."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def in_own_batches(dataset: Dataset[Any], size: int) -> DataLoader[Any]:
    sampler = BatchSampler(range(len(dataset)), size, False)
    return DataLoader(dataset, sampler=sampler, batch_size=None)


CONTAINERS: dict[str, Callable[[Tensor, int], Any]] = {
    "tensor": lambda x, size: x,
    "array": lambda x, size: x.numpy(),
    "reversed array": lambda x, size: np.ascontiguousarray(x.numpy()[::-1])[::-1],
    "tuple": lambda x, size: (x,),
    "tuple with labels": lambda x, size: (x, torch.arange(len(x))),
    "mapping": lambda x, size: {"pixel_values": x, "labels": torch.arange(len(x))},
    "list of samples": lambda x, size: list(x),
    "list of arrays": lambda x, size: list(x.numpy()),
    "list of pairs": lambda x, size: [(one, number) for number, one in enumerate(x)],
    "list of batches": lambda x, size: list(x.split(size)),
    "data set": lambda x, size: Made(len(x), lambda i: x[i]),
    "data set with labels": lambda x, size: Made(len(x), lambda i: (x[i], i)),
    "data set with labels by task": lambda x, size: Made(len(x), lambda i: (x[i], {"a": i, "b": x[i]})),
    "data set of boxes": lambda x, size: Made(len(x), lambda i: (x[i], [{"boxes": torch.rand(i, 4)}])),
    "data set of mappings": lambda x, size: Made(len(x), lambda i: {"pixel_values": x[i], "labels": i, "text": "t"}),
    "data set of arrays": lambda x, size: Made(len(x), lambda i: (x[i].numpy(), np.int64(i))),
    "tensor data set": lambda x, size: TensorDataset(x, torch.arange(len(x))),
    "stacked data set": lambda x, size: StackDataset(image=list(x), label=list(range(len(x)))),
    "joined data set": lambda x, size: ConcatDataset([TensorDataset(x[:1]), TensorDataset(x[1:])]),
    "subset": lambda x, size: Subset(TensorDataset(torch.cat([x, x])), range(len(x))),
    "stream": lambda x, size: Stream(TensorDataset(x)),
    "loader": lambda x, size: DataLoader(TensorDataset(x), size),
    "loader with labels": lambda x, size: DataLoader(TensorDataset(x, torch.arange(len(x))), size),
    "loader of mappings": lambda x, size: DataLoader(Made(len(x), lambda i: {"image": x[i], "label": i}), size),
    "loader of a stream": lambda x, size: DataLoader(Stream(TensorDataset(x)), size),
    "loader without batches": lambda x, size: DataLoader(TensorDataset(x), batch_size=None),
    "loader of whole batches": lambda x, size: in_own_batches(TensorDataset(x), size),
    "iterable of batches": lambda x, size: Batches(DataLoader(TensorDataset(x), size)),
}


@given(count=st.integers(2, 12), size=st.integers(1, 13))
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_samples_whatever_holds_them(name: str, count: int, size: int) -> None:
    x = images(count)
    samples = read_samples(CONTAINERS[name](x, size), IMAGES)
    for _ in range(2):
        batches = list(samples.batches(size))
        read = torch.cat([batch.inputs for batch in batches])
        assert torch.equal(read, x) and read.dtype == x.dtype
        if name != "loader of whole batches":  # its sampler is the caller's
            assert torch.cat([batch.index for batch in batches]).tolist() == list(range(count))
    assert samples.count in (None, count)
    if samples.by_number:
        index = torch.tensor([count - 1, 0, count // 2])
        assert torch.equal(samples.take(index).inputs, x[index])
        assert torch.equal(next(samples.subset([1, 0]).batches(2)).inputs, x[[1, 0]])
    first = torch.cat([batch.inputs for batch in samples.first(1, size)])
    assert torch.equal(first, x[: len(first)])


@pytest.mark.parametrize("name", ["list of pairs", "data set with labels", "tensor data set", "loader with labels"])
def test_labels_come_with_their_inputs(name: str) -> None:
    x = images(7)
    for batch in read_samples(CONTAINERS[name](x, 3), IMAGES, labels=True).batches(3):
        assert torch.equal(batch.labels, batch.index)
    unread = next(read_samples(CONTAINERS[name](x, 3), IMAGES).batches(3))
    assert unread.labels is None and unread.dropped


def test_labels_by_task_and_numbers_are_stacked() -> None:
    x = images(5)
    batch = next(read_samples(CONTAINERS["data set with labels by task"](x, 3), IMAGES, labels=True).batches(4))
    assert torch.equal(batch.labels["a"], torch.arange(4)) and torch.equal(batch.labels["b"], x[:4])
    floats = read_samples([(x[i], 0.5) for i in range(3)], IMAGES, labels=True)
    assert next(floats.batches(3)).labels.dtype == torch.float32  # as outputs are; default_collate makes float64


TWO = CallForm(positional=2, most=2, dims=2)
BERT = CallForm(names=("input_ids", "attention_mask"), complete=True, dims=2)
FORWARD = CallForm(positional=1, most=3, names=("pixel_values", "input_ids", "output_attentions"))
A, B, C = (torch.full((2,), float(number)) for number in range(3))


@pytest.mark.parametrize(
    ("sample", "form", "inputs", "labels"),
    [
        (A, IMAGES, A, None),
        ((A,), IMAGES, A, None),
        ([A, B], IMAGES, A, B),
        ((A, B, C), IMAGES, A, (B, C)),
        ((A, B), TWO, (A, B), None),
        ((A, B, C), TWO, (A, B), C),
        (((A, B), C), TWO, (A, B), C),
        ((A, {"one": B}), IMAGES, A, {"one": B}),
        ({"pixel_values": A, "labels": B}, IMAGES, A, B),
        ({"pixel_values": A, "depth": B, "edges": C}, IMAGES, A, {"depth": B, "edges": C}),
        ({"anything": A, "text": "no input"}, IMAGES, A, None),
        ({"attention_mask": B, "labels": C, "input_ids": A}, BERT, {"input_ids": A, "attention_mask": B}, C),
        (({"input_ids": A, "attention_mask": B}, C), BERT, {"input_ids": A, "attention_mask": B}, C),
        ({"pixel_values": A, "labels": B, "idx": C}, FORWARD, {"pixel_values": A}, B),
        ((A, B), CallForm(), A, B),
        ({"x": A, "y": B, "label": C}, CallForm(), {"x": A, "y": B}, C),
        (A, CallForm(names=("x",), complete=True), {"x": A}, None),
    ],
)
def test_what_is_an_input_and_what_a_label(sample: Any, form: CallForm, inputs: Any, labels: Any) -> None:
    found = separate(sample, form)
    assert [type(one) for one in found] == [type(inputs), type(labels)]
    for one, other in zip(found, (inputs, labels), strict=True):
        assert list(one) == list(other) if isinstance(one, dict) else True
        assert all(map(torch.equal, leaves(one), leaves(other))) and len(leaves(one)) == len(leaves(other))


@pytest.mark.parametrize(("form", "inputs"), [(CallForm(), 2), (FORWARD, 2), (TWO, 2), (IMAGES, 1)])
def test_a_whole_tuple_is_all_inputs_if_the_network_may_take_as_many_and_no_labels_are_read(
    form: CallForm, inputs: int
) -> None:
    assert len(leaves(next(read_samples((A, B), form).batches(2)).inputs)) == inputs
    read = next(read_samples((A, B), form, labels=True).batches(2))
    assert len(leaves(read.inputs)) == (form.positional or 1) and (read.labels is None) is (form is TWO)


BYTES = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONTAINERS)
def test_bytes_become_images_in_every_container(name: str) -> None:
    batches = read_samples(CONTAINERS[name](BYTES, 4), IMAGES).batches(4)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), to_images(BYTES))


def test_pictures_and_grey_images_become_images_and_bytes_for_byte_networks_stay() -> None:
    last = BYTES.movedim(1, -1).numpy()
    pictures = Made(6, lambda i: (Image.fromarray(last[i]), i))
    assert torch.equal(next(read_samples(pictures, IMAGES).batches(6)).inputs, to_images(BYTES))
    assert torch.equal(next(read_samples(last, IMAGES).batches(6)).inputs, to_images(BYTES))
    grey = read_samples(BYTES[:, 0], IMAGES)
    assert torch.equal(next(grey.batches(6)).inputs, to_images(BYTES[:, :1]))
    kept = read_samples(BYTES, CallForm(positional=1, dims=4, takes_bytes=True))
    assert torch.equal(next(kept.batches(6)).inputs, BYTES)


def test_double_arrays_get_the_networks_type_and_double_tensors_stay() -> None:
    x, form = np.random.default_rng(0).random((5, 2)), CallForm(positional=1, dims=2, floating=torch.float32)
    for source in (x, list(x), [x[:3], x[3:]]):
        inputs = next(read_samples(source, form).batches(3)).inputs
        torch.testing.assert_close(inputs, torch.from_numpy(x[:3]).float())
    assert next(read_samples(torch.from_numpy(x), form).batches(5)).inputs.dtype == torch.float64


def test_lists_of_numbers_are_tensors() -> None:
    """Data sets of the datasets library give Python lists unless they are told otherwise."""
    tokens = [{"input_ids": [i, 2, 3], "attention_mask": [1, 1, 0], "label": i, "text": "t"} for i in range(4)]
    batch = next(read_samples(Made(4, lambda i: tokens[i]), BERT, labels=True).batches(4))
    assert batch.inputs["input_ids"].tolist() == [[i, 2, 3] for i in range(4)]
    assert batch.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"lists of tensors, as DataLoader makes.*with_format"):
        next(read_samples(DataLoader(Made(4, lambda i: tokens[i]), 2), BERT).batches(2))


def once() -> Iterator[Tensor]:
    yield images(3)


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Tensor:
        return A


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        (once(), IMAGES, "a generator, which can be read once only.*expected a tensor.*pass list"),
        ("photos/", IMAGES, "a path, 'photos/'; expected.*ImageFolder"),
        (None, IMAGES, "a NoneType; expected a tensor"),
        (3, IMAGES, "an? int; expected a tensor"),
        ([], IMAGES, "an empty list; expected at least one"),
        (Made(0, lambda i: A), IMAGES, "of length 0; expected at least one"),
        (images(0), IMAGES, r"hold \[0\] samples; expected one number for all, at least 1"),
        ((A, torch.zeros(3)), TWO, r"hold \[2, 3\] samples; expected one number for all"),
        (A, TWO, "a tensor .* alone; expected a tuple of the 2 tensors"),
        ({"train": TensorDataset(A)}, IMAGES, r"a mapping with \['train'\]; expected.*pass one of its entries"),
        (Endless(), IMAGES, "has no length; expected a Dataset with __len__"),
        ([{"input_ids": A}], BERT, r"entries \['input_ids'\] and lack \['attention_mask'\]; expected"),
        ([{"one": A, "two": B}], IMAGES, "which of them the network takes is unclear; expected one tensor"),
        ([A, torch.zeros(3)], IMAGES, r"shapes \(2,\) and \(3,\); expected one shape: resize"),
        (Made(2, lambda i: object()), IMAGES, "holds a object; expected a tensor, an array or a number"),
        (np.array(["a", "b"]), IMAGES, "an array holds <U1; expected numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(source: Any, form: CallForm, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        next(read_samples(source, form).batches(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loader", "stream", "list of batches"])
def test_samples_in_their_own_order_have_no_numbers(name: str) -> None:
    samples = read_samples(CONTAINERS[name](images(6), 2), IMAGES)
    for ask in (lambda: samples.take(torch.tensor([0])), lambda: samples.subset([0])):
        with pytest.raises(DataError, match="expected samples that can be read by number: pass tensors or the Dataset"):
            ask()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_length_of_a_loader_is_known_and_its_order_only_without_shuffling(drop_last: bool, shuffle: bool) -> None:
    loader = DataLoader(TensorDataset(images(7)), 3, drop_last=drop_last, shuffle=shuffle)
    assert count_samples(loader) == sum(len(batch) for (batch,) in loader) == (6 if drop_last else 7)
    samples = read_samples(loader, IMAGES)
    assert samples.shuffled is shuffle
    assert all((batch.index is None) is shuffle for batch in samples.batches(1))
    with pytest.raises(DataError, match="is unknown"):
        count_samples(Stream(TensorDataset(A)))


def test_a_loader_in_an_order_of_its_own_gives_no_numbers() -> None:
    x = TensorDataset(images(6))
    own = DataLoader(x, batch_sampler=[[4, 0], [2]])
    assert [batch.index for batch in read_samples(own, IMAGES).batches(1)] == [None, None]
    assert read_samples(DataLoader(x, batch_sampler=BatchSampler(RandomSampler(x), 2, False)), IMAGES).shuffled


class Sharded(Stream):
    """A stream of which each worker reads its share."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (self.inner[index] for index in range(first, len(self.inner), step))


@pytest.mark.parametrize(("stream", "count"), [(Stream, 12), (Sharded, 6)])
def test_a_stream_that_several_workers_read_has_no_numbers(stream: type[Stream], count: int) -> None:
    loader = DataLoader(stream(TensorDataset(images(6), torch.arange(6))), 2, num_workers=2)
    batches = list(read_samples(loader, IMAGES, labels=True).batches(1))
    assert sum(map(len, batches)) == count
    assert torch.cat([batch.labels for batch in batches]).tolist() != list(range(6))  # so labels apart cannot match
    assert [batch.index for batch in batches] == [None] * len(batches)
    single = DataLoader(stream(TensorDataset(images(6), torch.arange(6))), 2, num_workers=1)
    assert all(torch.equal(one.labels, one.index) for one in read_samples(single, IMAGES, labels=True).batches(1))


def test_a_loader_that_gives_batches_as_they_are_finished_has_no_numbers() -> None:
    def make(index: int) -> tuple[Tensor, int]:
        time.sleep(0.5 if index == 0 else 0)
        return images(6)[index], index

    loader = DataLoader(Made(6, make), 2, num_workers=2, in_order=False)
    batches = list(read_samples(loader, IMAGES, labels=True).batches(1))
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(6))
    assert [batch.index for batch in batches] == [None] * 3


def test_a_data_set_that_fetches_several_samples_at_once_is_asked_so() -> None:
    class Fetching(Made):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            asked.append(numbers)
            return [self.make(number) for number in numbers]

    asked: list[list[int]] = []
    x = images(5)
    samples = read_samples(Fetching(5, lambda i: x[i]), IMAGES)
    assert torch.equal(torch.cat([batch.inputs for batch in samples.batches(2)]), x)
    assert asked == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("name", ["data set", "stream", "loader", "loader of a stream", "loader without batches"])
def test_one_batch_is_held_at_a_time(name: str) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def make(index: int) -> Tensor:
        made = torch.full((3, 4, 4), float(index))
        alive.add(made)
        return made

    source: Any = Made(200, make)
    if "stream" in name:
        source = Stream(source)
    if "loader" in name:
        source = DataLoader(source, None if "without" in name else 4)
    largest = 0
    for batch in read_samples(source, IMAGES).batches(4):
        gc.collect(0)
        largest = max(largest, len(alive))
        assert len(batch) <= 4
    assert largest <= 8


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_samples(workers: int) -> None:
    x = images(9)
    loader = DataLoader(TensorDataset(x, torch.arange(9)), 2, num_workers=workers)
    batches = list(read_samples(loader, IMAGES, labels=True).batches(1))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), x)
    assert all(torch.equal(batch.labels, batch.index) for batch in batches)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_placed_inputs_are_copies_in_the_same_memory_order(order: torch.memory_format) -> None:
    x, more = images(2).contiguous(memory_format=order), torch.arange(2)
    there = placed({"x": x, "more": (more, "flag")}, torch.device("cpu"))
    assert there["x"].is_contiguous(memory_format=order) and torch.equal(there["x"], x)
    there["x"].zero_(), there["more"][0].zero_()
    assert torch.equal(x, images(2)) and torch.equal(more, torch.arange(2)) and there["more"][1] == "flag"


def test_examples_are_taken_as_they_are_or_read() -> None:
    x = images(6)
    for example in (x, (x, x), {"x": x}):
        assert as_example(example) is example
    assert torch.equal(as_example(x.numpy()), x)
    assert torch.equal(as_example(DataLoader(TensorDataset(x, A[:1].expand(6)), 4)), x[:4])
    assert torch.equal(as_example(Made(6, lambda i: (x[i], 1))), x[:1])


def test_samples_that_were_looked_at_are_taken_again_for_another_network() -> None:
    samples = read_samples((A, B))
    again = read_samples(samples, CallForm(positional=1), labels=True)
    assert isinstance(again, Samples) and torch.equal(next(again.batches(2)).labels, B)
