"""What `fit` is given as data, read in one way: batches with labels, and held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.call_forms import CallForm
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.held_out_samples import HeldOutSamples, KeptBatches, given_samples, set_aside
from branchnet.training.labels import rows_of
from branchnet.training.optimization.batch_order import BatchOrder, Mix, MixedOrder
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.resuming.run_identity import labels_hash, samples_hash


@dataclass(frozen=True)
class LabelledData:
    """Data to train on.

    Attributes:
        samples: the samples; of data sets by task that of the first one.
        by_task: for each task its samples, where each has data of its own.
        labels: for each task all labels, where they were given apart.
        held_out: samples that are not trained on; None where there are none.
        draws: the batches of the steps, from the first again whenever it is called.
        count: how many samples there are to train on, where that is known.
    """

    samples: Samples
    by_task: Mapping[str, Samples]
    labels: Mapping[str, Any] | None
    held_out: HeldOutSamples | None
    draws: Callable[[], Any]
    count: int | None

    def identity(self) -> dict[str, str]:
        """Hashes of the samples and of labels that were given apart."""
        if self.by_task:
            return {"samples": str({task: samples_hash(one) for task, one in self.by_task.items()})}
        found = {"samples": samples_hash(self.samples)}
        return found if self.labels is None else found | {"labels": labels_hash(self.labels)}


def labelled_data(
    network: nn.Module,
    train: Source | Mapping[str, Source],
    labels: Any,
    tasks: tuple[str, ...],
    validation: Source | None,
    settings: Settings,
    mix: Mix,
) -> LabelledData:
    """Read what `fit` is given.

    Args:
        network: what is trained.
        train: samples with labels; or without, where these are given apart; or `{task: samples}`.
        labels: given apart, or None.
        tasks: what labels are wanted for.
        validation: held-out samples, or None.
        settings: of the run.
        mix: how data sets by task are drawn from.

    Raises:
        TrainingError: labels that are missing, or of another number than samples.
        DataError: samples that cannot be read.
    """
    form = call_form(network)
    if labels is None and _is_by_task(network, train):
        return _by_task(train, form, tasks, validation, settings, mix)  # type: ignore[arg-type]
    if labels is None:
        train, labels = _apart(train, form, by_task=isinstance(network, BranchedNetwork))
    given = _checked_labels(network, labels, tasks)
    samples = read_samples(train, form, labels=given is None, lists="samples")
    if given is not None and samples.count is not None:
        _check_lengths(given, samples.count, by_task=isinstance(network, BranchedNetwork))
    held_out = _held_out(samples, validation, network, tasks, settings)
    numbers = None if held_out is None else held_out.numbers
    return LabelledData(
        samples,
        {},
        given,
        held_out,
        lambda: BatchOrder(samples, settings.batch_size, settings.seed, numbers),
        samples.count if numbers is None else len(numbers),
    )


def _held_out(
    samples: Samples, validation: Source | None, network: nn.Module, tasks: tuple[str, ...], settings: Settings
) -> HeldOutSamples | None:
    if validation is None:
        return set_aside(samples, settings.batch_size) if settings.keep == "best" else None
    form = call_form(network)
    inputs, labels = _apart(validation, form, by_task=isinstance(network, BranchedNetwork))
    given = _checked_labels(network, labels, tasks)
    if given is None:
        return given_samples(validation, form, settings.batch_size, labels=True)
    return _labelled(inputs, given, form, settings, network)


def _labelled(
    inputs: Source, labels: Mapping[str, Any], form: CallForm, settings: Settings, network: nn.Module
) -> HeldOutSamples:
    """Held-out samples whose labels are given apart, too."""
    samples = read_samples(inputs, form, lists="samples")
    _check_lengths(labels, samples.known_count, by_task=isinstance(network, BranchedNetwork))

    def read() -> Iterator[Batch]:
        for batch in samples.batches(settings.batch_size, seed=0):
            assert batch.index is not None
            own = {task: rows_of(values, batch.index) for task, values in labels.items()}
            yield replace(batch, labels=own, index=None)  # the numbers are not those of the samples to train on

    return HeldOutSamples(KeptBatches(read), "validation samples")


def _is_by_task(network: nn.Module, train: Any) -> bool:
    """A mapping of tensors is what a network of keyword arguments is called with."""
    return (
        isinstance(network, BranchedNetwork)
        and isinstance(train, Mapping)
        and bool(train)
        and set(train) <= set(network.tasks)
        and not any(isinstance(value, Tensor) for value in train.values())
    )


def _by_task(
    train: Mapping[str, Source],
    form: CallForm,
    tasks: tuple[str, ...],
    validation: Any,
    settings: Settings,
    mix: Mix,
) -> LabelledData:
    if missing := [task for task in tasks if task not in train]:
        raise TrainingError(f"tasks {missing} have a loss and no data; expected some for each, or the task frozen")
    read = {task: read_samples(train[task], form, labels=True, lists="samples") for task in tasks}
    judged: dict[str, HeldOutSamples] = {}
    for task, samples in read.items():
        given = validation.get(task) if isinstance(validation, Mapping) else None
        if validation is not None and given is None:
            raise TrainingError(f"task {task!r} has data of its own and no validation samples; expected a mapping")
        if given is not None:
            judged[task] = given_samples(given, form, settings.batch_size, labels=True)
        elif settings.keep == "best":
            judged[task] = set_aside(samples, settings.batch_size)

    def draws() -> MixedOrder:
        orders = {}
        for number, (task, samples) in enumerate(read.items()):
            numbers = judged[task].numbers if task in judged else None
            orders[task] = BatchOrder(samples, settings.batch_size, settings.seed * 31 + number, numbers)
        return MixedOrder(orders, mix, [samples.count for samples in read.values()], settings.seed)

    draws()  # an unknown mix is told before anything is measured
    counts = [samples.count for samples in read.values()]
    return LabelledData(
        next(iter(read.values())),
        read,
        None,
        _mixed(judged) if judged else None,
        draws,
        None if None in counts else sum(filter(None, counts)),
    )


def _mixed(judged: Mapping[str, HeldOutSamples]) -> HeldOutSamples:
    """The held-out samples of all tasks, one task after the other; their labels say of which."""

    def read() -> Iterator[Batch]:
        for task, held in judged.items():
            for batch in held.batches():
                labels = batch.labels if isinstance(batch.labels, Mapping) else {task: batch.labels}
                yield replace(batch, labels={task: labels.get(task)})

    kinds = list(dict.fromkeys(held.judged_on for held in judged.values()))
    return HeldOutSamples(read, " and ".join(kinds))


def _apart(train: Any, form: CallForm, *, by_task: bool) -> tuple[Any, Any]:
    """Inputs and labels of `(x, {task: y})`, and of `(x, y)` for a network of one tensor."""
    if not (isinstance(train, tuple) and len(train) == 2):
        return train, None
    inputs, labels = train
    if by_task:
        return (inputs, labels) if isinstance(labels, Mapping) and not isinstance(inputs, str) else (train, None)
    return (inputs, labels) if form.positional in (None, 1) and not form.complete else (train, None)


def _checked_labels(network: nn.Module, labels: Any, tasks: tuple[str, ...]) -> dict[str, Any] | None:
    if labels is None:
        return None
    if isinstance(network, BranchedNetwork) != isinstance(labels, Mapping):
        expected = "a dictionary by task" if isinstance(network, BranchedNetwork) else "those of one task"
        raise TrainingError(f"labels are a {type(labels).__name__}; expected {expected}")
    given = labels if isinstance(labels, Mapping) else dict.fromkeys(tasks, labels)
    for task in tasks:
        if given.get(task) is None:
            raise TrainingError(f"task {task!r} lacks labels; expected some, or the task frozen throughout")
    return {task: given[task] for task in tasks}


def _check_lengths(given: Mapping[str, Any], count: int, *, by_task: bool) -> None:
    for task, labels in given.items():
        if len(labels) != count:
            of_task = f" of {task!r}" if by_task else ""
            raise TrainingError(f"{len(labels)} labels{of_task} were given; expected {count}, one for each sample")
