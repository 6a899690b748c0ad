"""A problem: networks, images divided three ways, and what the answer is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from branchnet.clustering import Budget
from branchnet.data import ImageFolder, to_images
from branchnet.data.samples import Inputs, batches, count_samples, take
from branchnet.errors import DataError, SpecError
from branchnet.pipeline.config.run_config import Kind, RunOptions, unknown_donor
from branchnet.stages import call
from branchnet.training import Metric, explained_variance, kl_divergence, top1_agreement

_HASHED_AT_ONCE = 64


@dataclass(frozen=True)
class Problem:
    """What is asked: networks, images, and how the answer is judged.

    Attributes:
        networks: trained single-task networks by task.
        train: images to distil on.
        probe: images on which the networks are compared.
        test: images that the results are measured on.
        targets: labels of the test images by task, or the donors' outputs.
        metrics: the metric of each task.
        budget: the size that the branched network may have.
        options: how the run goes.
        identity: JSON values that decide the networks' weights and the images; finished steps of another identity are
            not reused.
        compiled: whether latencies are measured compiled, too.
        further: more metrics, by the label they are reported under: the task and the metric.
    """

    networks: Mapping[str, nn.Module]
    train: Inputs
    probe: Inputs
    test: Inputs
    targets: Mapping[str, Tensor]
    metrics: Mapping[str, Metric]
    budget: Budget
    options: RunOptions
    identity: Any = None
    compiled: bool = True
    further: Mapping[str, tuple[str, Metric]] = field(default_factory=dict)

    @property
    def example(self) -> Any:
        """One input, as the networks take it, where they are."""
        return take(self.test, torch.tensor([0]), self.device)

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
    images: Inputs,
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
        kinds: the kind of each task; regression where it is not named.
        metrics: metrics instead of those of the kinds.
        compiled: whether latencies are measured compiled, too.
        resumable: hash weights and images, so that finished steps can be found again.

    Returns:
        The problem.

    Raises:
        SpecError: fewer than two networks, unknown tasks or kinds.
        DataError: images that cannot be read, or too few of them.
        BudgetError: a budget that cannot be read.
    """
    _check_tasks(networks, options.donor, kinds or {}, metrics or {})
    inputs = as_inputs(images, "images")
    train, test = divide(inputs, options)
    chosen, further = metrics_of({task: (kinds or {}).get(task, "regression") for task in networks})
    hashes = [{task: weights_hash(net) for task, net in networks.items()}, images_hash(inputs)] if resumable else []
    return Problem(
        networks=networks,
        train=train,
        probe=probe_of(train, options),
        test=test,
        targets=donor_outputs(networks, test, options.batch_size),
        metrics=chosen | {task: on_first_tensor(metric) for task, metric in (metrics or {}).items()},
        budget=budget if isinstance(budget, Budget) else Budget.parse(budget),
        options=options,
        identity=[*hashes, options.held_out],
        compiled=compiled,
        further=further,
    )


def _check_tasks(
    networks: Mapping[str, nn.Module], donor: str | None, kinds: Mapping[str, str], metrics: Mapping[str, Metric]
) -> None:
    tasks = ", ".join(networks)
    if len(networks) < 2:
        raise SpecError(f"a branched network needs single-task networks of two tasks or more; given: {tasks or 'none'}")
    for task, network in networks.items():
        if not isinstance(network, nn.Module):
            raise SpecError(f"the network of {task!r} is a {type(network).__name__} (expected a torch.nn.Module)")
    if donor is not None and donor not in networks:
        raise SpecError(f"donor: {unknown_donor(donor, networks)}")
    for name, given in (("kinds", kinds), ("metrics", metrics)):
        if unknown := [task for task in given if task not in networks]:
            raise SpecError(f"{name}: unknown task {unknown[0]!r} (expected one of {tasks})")
    for task, kind in kinds.items():
        if kind not in ("classification", "regression"):
            raise SpecError(f"kinds: {kind!r} of {task!r} is unknown (expected 'classification' or 'regression')")


def as_inputs(images: Any, source: str) -> Inputs:
    """Images as the networks take them: arrays, uint8 and channels-last images are converted.

    Args:
        images: K samples.
        source: what an error calls them.

    Returns:
        The samples; sequences that are read on demand as they are.

    Raises:
        DataError: something else than samples.
    """
    named = isinstance(images, Mapping) or (isinstance(images, tuple) and images)
    if named and all(isinstance(leaf, Tensor) and leaf.dim() for leaf in pytree.tree_leaves(images)):
        return cast(Inputs, images)
    if isinstance(images, Sequence) and not isinstance(images, str):
        return cast(Inputs, images)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if not isinstance(images, Tensor) or images.dim() < 2:
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"{source}: expected images (K, C, H, W), or a dict or tuple of tensors; found {found}")
    channels_last = images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3)
    return to_images(images) if images.dtype == torch.uint8 or channels_last else images


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
        >>> train, test = branchnet.pipeline.held_out_rows(10, 0.2)
        >>> len(train), len(test)
        (8, 2)
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(share * count)
    if held_out < 1 or count - held_out < 3:
        raise DataError(f"{count} images are too few for a held-out share of {share:g} and a probe of 3")
    return order[held_out:], order[:held_out]


def divide(images: Inputs, options: RunOptions) -> tuple[Inputs, Inputs]:
    """Divide the images, shuffled by the seed, into those that are trained on and those that are held out.

    Args:
        images: K samples.
        options: the share that is held out, and the seed.

    Returns:
        Both parts.

    Raises:
        DataError: too few images.
    """
    train, test = held_out_rows(count_samples(images), options.held_out, options.seed)
    return _subset(images, train), _subset(images, test)


def probe_of(train: Inputs, options: RunOptions) -> Any:
    """The images on which the networks are compared."""
    return take(train, torch.arange(min(options.probe, count_samples(train))), torch.device("cpu"))


def metrics_of(kinds: Mapping[str, Kind]) -> tuple[dict[str, Metric], dict[str, tuple[str, Metric]]]:
    """The metric of each task, and further ones by label: agreement with the single-task network.

    Args:
        kinds: the kind of each task.

    Returns:
        The metrics by task; the further ones as (task, metric) by label.
    """
    classes = [task for task, kind in kinds.items() if kind == "classification"]
    metrics = {task: on_first_tensor(top1_agreement() if task in classes else explained_variance()) for task in kinds}
    further = {
        f"{task}: {metric.name}": (task, on_first_tensor(metric))
        for task in classes
        for metric in (kl_divergence(), explained_variance())
    }
    return metrics, further


def donor_outputs(networks: Mapping[str, nn.Module], images: Inputs, batch_size: int) -> dict[str, Tensor]:
    """First floating-point tensor of each network's output, for all images.

    Args:
        networks: the networks by task.
        images: K samples.
        batch_size: samples in a batch.

    Returns:
        K outputs by task, on the CPU.
    """
    with torch.no_grad():
        return {
            task: torch.cat(
                [
                    first_tensor(call(network, take(images, index, next(network.parameters()).device))).cpu()
                    for index in batches(count_samples(images), batch_size)
                ]
            )
            for task, network in networks.items()
        }


def on_first_tensor(metric: Metric) -> Metric:
    """Apply a metric to the first floating-point tensor of an output, which may be a dict or a tuple."""
    return replace(metric, sums=lambda output, target: metric.sums(first_tensor(output), target))


def first_tensor(output: Any) -> Tensor:
    """First floating-point tensor of a nested output.

    Args:
        output: a tensor, or tensors nested in dicts, tuples and the like.

    Returns:
        The tensor.

    Raises:
        DataError: there is none.
    """
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise DataError(f"the network's output, {type(output).__name__}, holds no floating-point tensor to compare")


def weights_hash(network: nn.Module) -> str:
    """Content hash of parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def images_hash(images: Inputs) -> str:
    """Content hash of images; of names, sizes and times of a folder's files, which are not read for it."""
    digest = hashlib.sha256()
    if isinstance(images, ImageFolder):
        for path in images.paths:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        digest.update(f"{images.size} {images.mean} {images.std}".encode())
        return digest.hexdigest()
    for index in batches(count_samples(images), _HASHED_AT_ONCE):
        leaves, form = pytree.tree_flatten(take(images, index, torch.device("cpu")))
        digest.update(str(form).encode())
        for leaf in leaves:
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            digest.update(_content(leaf))
    return digest.hexdigest()


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _subset(images: Inputs, rows: list[int]) -> Inputs:
    if isinstance(images, Tensor):
        return images[rows]
    if isinstance(images, Mapping | tuple):
        return cast(Inputs, take(images, torch.tensor(rows), torch.device("cpu")))
    return Subset(cast(Any, images), rows)  # type: ignore[return-value]
