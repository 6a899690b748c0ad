"""A problem: networks, images divided three ways, and what the answer is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from branchnet.clustering import Budget
from branchnet.data import ImageFolder, to_images
from branchnet.data.call_forms import CallForm, described
from branchnet.data.collation import placed
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import DataError, SpecError, TrainingError
from branchnet.pipeline.config.run_config import Kind, RunOptions, unknown_donor
from branchnet.pipeline.labelled_run.labelled_training import LabelledTraining
from branchnet.pipeline.output_kinds import first_tensor, known_kinds, metrics_of, on_first_tensor
from branchnet.stages import call
from branchnet.stages.interface import call_form, explaining
from branchnet.stages.tracing.input_order import InputOrder
from branchnet.training import Metric
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.installed_torch.torch_internals import pytree
from branchnet.utils.tensor_digest import checksum
from branchnet.utils.visible_text import invisible

_HASHED_AT_ONCE = 64
VALIDATION = 128
VALIDATION_SHARE = 0.1
READ_TWICE = 8
"""Samples that are read a second time, to notice random augmentation before anything takes long."""


@dataclass(frozen=True)
class Problem:
    """What is asked: networks, images, and how the answer is judged.

    Attributes:
        networks: trained single-task networks by task.
        train: images to distil on.
        validation: images that nothing is fitted or trained on, by which trees and states of training are chosen.
        probe: images on which the networks are compared.
        test: images that the results are measured on.
        targets: labels of the test images by task, or the donors' outputs.
        metrics: the metric of each task.
        budget: the size that the branched network may have.
        options: how the run goes.
        identity: JSON values that decide the networks' weights and the images; finished steps of another identity are
            not reused.
        compiled: whether latencies are measured compiled, too.
        kinds: the kind of each task's output; regression where it is not named.
        further: more metrics, each with its task.
        labelled: samples with labels on which the networks are trained and measured, in place of `targets`.
        validation_targets: labels of the validation images by task, where `targets` are labels.
    """

    networks: Mapping[str, nn.Module]
    train: Source
    validation: Source
    probe: Source
    test: Source
    targets: Mapping[str, Tensor]
    metrics: Mapping[str, Metric]
    budget: Budget
    options: RunOptions
    identity: Any = None
    compiled: bool = True
    further: Sequence[tuple[str, Metric]] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    labelled: LabelledTraining | None = None
    validation_targets: Mapping[str, Tensor] | None = None

    @property
    def source(self) -> dict[str, Any]:
        """What tells a folder of results from that of another problem."""
        return {"tasks": sorted(self.networks), "data": self.identity[:2][-1] if self.identity else None}

    @property
    def example(self) -> Any:
        """One input, as the networks take it, where they are."""
        return placed(read_samples(self.test).take(torch.tensor([0])).inputs, self.device)

    @property
    def device(self) -> torch.device:
        """The device that the single-task networks are on."""
        return next(next(iter(self.networks.values())).parameters()).device

    @property
    def hardware(self) -> list[Any]:
        """What latencies depend on, besides the networks."""
        return [torch.cuda.get_device_name(self.device)] if self.device.type == "cuda" else [torch.get_num_threads()]


def make_problem(
    networks: Mapping[str, nn.Module],
    images: Source,
    budget: Budget | str,
    options: RunOptions,
    *,
    kinds: Mapping[str, Kind] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    compiled: bool = True,
    resumable: bool = True,
) -> Problem:
    """Check what is given, divide the images, and compute the outputs that the branched network is judged by.

    Args:
        networks: as `branchnet.run` takes them, and so are the other arguments.
        images: K samples.
        budget: the size that the branched network may have.
        options: how the run goes.
        kinds: the kinds of some tasks; the others show in the outputs.
        metrics: metrics instead of those of the kinds.
        compiled: whether latencies are measured compiled, too.
        resumable: hash weights and images, so that finished steps can be found again.

    Returns:
        The problem.

    Raises:
        SpecError: fewer than two networks, unknown tasks or kinds, a task whose name holds characters that nobody sees.
        DataError: images that cannot be read, or too few of them; a network that answers all of them alike.
        BudgetError: a budget that cannot be read, or names an unknown task.
    """
    _check_tasks(networks, options.donor, kinds or {}, metrics or {})
    samples = as_samples(images, "images", call_form(next(iter(networks.values()))))
    train, test = divide(samples, options)
    train, validation = set_aside(train)
    _refuse_changing(test)
    targets = donor_outputs(networks, test, options.batch_size)
    known = known_kinds(kinds or {}, targets)
    chosen, further = metrics_of(known)
    chosen |= {task: on_first_tensor(metric) for task, metric in (metrics or {}).items()}
    for task, metric in (*chosen.items(), *further):
        _refuse_constant(task, targets[task], metric, options.batch_size)
    hashes = [{task: weights_hash(net) for task, net in networks.items()}, images_hash(samples)] if resumable else []
    return Problem(
        networks=networks,
        train=train,
        validation=validation,
        probe=probe_of(train, options),
        test=test,
        targets=targets,
        metrics=chosen,
        budget=_checked_budget(budget, tuple(networks)),
        options=options,
        identity=[*hashes, options.held_out, options.seed],
        compiled=compiled,
        further=further,
        kinds=known,
    )


def _checked_budget(budget: Budget | str, tasks: Sequence[str]) -> Budget:
    """The budget, before anything is measured for it."""
    wanted = budget if isinstance(budget, Budget) else Budget.parse(budget)
    wanted.check_tasks(tasks)
    return wanted


def _refuse_changing(images: Samples) -> None:
    """Refuse samples that are others whenever they are read: every network is judged by the same ones."""
    rows = torch.arange(min(READ_TWICE, images.known_count))
    first, second = (
        checksum((str(number), leaf) for number, leaf in enumerate(_leaves(images.take(rows)))) for _ in range(2)
    )
    if first != second:
        raise DataError(
            "images: the same samples differ from one reading to the next; expected fixed ones, since every network is "
            "measured on them (pass the data set without its random augmentation)"
        )


def _refuse_constant(task: str, targets: Tensor, metric: Metric, batch_size: int) -> None:
    """Refuse outputs by which nothing can be judged, as constant ones: the metric of them with themselves says so."""
    try:
        metric.result(torch.stack([metric.sums(part, part) for part in targets.split(batch_size)]).sum(0))
    except TrainingError as error:
        raise DataError(f"task {task!r} cannot be judged by its network's outputs: {error}") from error


def _leaves(batch: Batch) -> list[Tensor]:
    return [leaf.contiguous() for leaf in pytree.tree_leaves(placed(batch.inputs, torch.device("cpu")))]


def _check_tasks(
    networks: Mapping[str, nn.Module], donor: str | None, kinds: Mapping[str, str], metrics: Mapping[str, Metric]
) -> None:
    tasks = ", ".join(networks)
    if len(networks) < 2:
        raise SpecError(f"a branched network needs single-task networks of two tasks or more; given: {tasks or 'none'}")
    for task, network in networks.items():
        if found := invisible(task):
            raise SpecError(f"task {task!r} holds {', '.join(found)}, which nobody sees (remove it)")
        if not isinstance(network, nn.Module):
            raise SpecError(f"the network of {task!r} is a {type(network).__name__}; expected a torch.nn.Module")
    if donor is not None and donor not in networks:
        raise SpecError(f"donor: {unknown_donor(donor, networks)}")
    for name, given in (("kinds", kinds), ("metrics", metrics)):
        if unknown := [task for task in given if task not in networks]:
            raise SpecError(f"{name}: unknown task {unknown[0]!r}; expected one of {tasks}")
    for task, kind in kinds.items():
        if kind not in get_args(Kind):
            raise SpecError(f"kinds: {kind!r} of {task!r} is unknown; expected one of {', '.join(get_args(Kind))}")


def as_samples(images: Any, source: str, form: CallForm | None = None) -> Samples:
    """Images as the networks take them: arrays, uint8 and channels-last images are converted.

    Args:
        images: K samples that can be read by number.
        source: what an error calls them.
        form: what the networks take, where it is known.

    Returns:
        The reader of the samples.

    Raises:
        DataError: something else than samples, or samples that cannot be divided.
    """
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        channels_last = images.shape[1] not in (1, 3) and images.shape[3] in (1, 3)
        images = to_images(images) if channels_last else images
    try:
        samples = read_samples(images, form)
        inputs = samples.take(torch.tensor([0])).inputs
        if isinstance(inputs, Tensor) and inputs.dim() < 2:
            raise DataError(f"the samples are {described(images)}; expected more than a number for each")
    except DataError as error:
        raise DataError(
            f"{source}: expected images (K, C, H, W), a tuple or dict of tensors, a list or a Dataset; {error}"
        ) from error
    return samples


def held_out_rows(count: int, share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Which of `count` images a run trains on, and which it holds out.

    Args:
        count: how many images there are.
        share: `held_out` of `branchnet.run`.
        seed: that of the run.

    Returns:
        The rows of the images that are trained on, in the order in which they are taken, and of those held out.

    Raises:
        DataError: too few images.

    Examples:
        >>> from branchnet.pipeline import held_out_rows
        >>> train, test = held_out_rows(10, 0.2)
        >>> len(train), len(test)
        (8, 2)
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(share * count)
    if held_out < 1 or count - held_out < 3:
        raise DataError(f"{count} images are too few for a held-out share of {share:g} and a probe of 3")
    return order[held_out:], order[:held_out]


def divide(images: Source, options: RunOptions) -> tuple[Samples, Samples]:
    """Divide the images, shuffled by the seed, into those that are trained on and those that are held out.

    Args:
        images: K samples.
        options: the share that is held out, and the seed.

    Returns:
        Both parts.

    Raises:
        DataError: too few images, or images that cannot be read by number.
    """
    samples = read_samples(images)
    train, test = held_out_rows(samples.known_count, options.held_out, options.seed)
    return samples.subset(train), samples.subset(test)


def set_aside(train: Source) -> tuple[Samples, Samples]:
    """Keep a tenth of the training images, at most 128, for choosing between trees and between states of training.

    Args:
        train: the images to train on, in random order.

    Returns:
        The other images, and those set aside.
    """
    samples = read_samples(train)
    count = samples.known_count
    aside = min(VALIDATION, max(2, round(VALIDATION_SHARE * count)))
    return samples.subset(list(range(count - aside))), samples.subset(list(range(count - aside, count)))


def probe_of(train: Source, options: RunOptions) -> Any:
    """The images on which the networks are compared."""
    samples = read_samples(train)
    chosen = samples.take(torch.arange(min(options.probe, samples.known_count)))
    return placed(chosen.inputs, torch.device("cpu"))


@keeping_freed_memory()
def donor_outputs(networks: Mapping[str, nn.Module], images: Source, batch_size: int) -> dict[str, Tensor]:
    """First floating-point tensor of each network's output, for all images, each of which is read once.

    Args:
        networks: the networks by task.
        images: K samples.
        batch_size: samples in a batch.

    Returns:
        K outputs by task, on the CPU.

    Raises:
        DataError: images that a network cannot be run on.
    """
    found: dict[str, list[Tensor]] = {task: [] for task in networks}
    orders = {task: InputOrder(network) for task, network in networks.items()}
    with torch.no_grad():
        for batch in read_samples(images).batches(batch_size):
            for task, network in networks.items():
                inputs = orders[task].placed(batch.inputs, next(network.parameters()).device)
                interface = getattr(network, "interface", None)
                with explaining(inputs, interface, DataError, f"the network of {task!r}"):
                    output = call(network, inputs)
                found[task].append(first_tensor(output).cpu())
    return {task: torch.cat(outputs) for task, outputs in found.items()}


def weights_hash(network: nn.Module) -> str:
    """Content hash of parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def images_hash(images: Source) -> str:
    """Content hash of images; of names, sizes and times of a folder's files, which are not read for it."""
    digest = hashlib.sha256()
    samples = read_samples(images)
    if isinstance(folder := samples.source, ImageFolder):
        for path in folder.paths:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        size = folder.size if folder.letterbox is None else f"letterbox {folder.letterbox}"
        digest.update(f"{size} {folder.mean} {folder.std}".encode())
        return digest.hexdigest()
    for batch in samples.batches(_HASHED_AT_ONCE):
        leaves, form = pytree.tree_flatten(batch.inputs)
        digest.update(str(form).encode())
        for leaf in leaves:
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            digest.update(_content(leaf))
    return digest.hexdigest()


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
