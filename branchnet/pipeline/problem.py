"""From a run config to a problem: networks with weights, images split three ways, the donors' outputs as targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchnet.clustering import Budget
from branchnet.data import ImageFolder, load_images, to_images
from branchnet.data.call_forms import CallForm, described
from branchnet.data.collation import leaves, placed
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.deploy import load_weights
from branchnet.errors import BudgetError, DataError, SpecError
from branchnet.models.constructors import create
from branchnet.pipeline.run_config import ImagesConfig, NetworkConfig, RunConfig, call_factory, one_source
from branchnet.pipeline.steps import Problem
from branchnet.stages import call
from branchnet.stages.interface import call_form
from branchnet.training import Metric, explained_variance, kl_divergence, top1_agreement

BYTES_IN_MEMORY = 2 * 2**30


def problem_from_config(config: RunConfig, folder: Path, *, device: str | None = None) -> Problem:
    """Make networks and images; paths in the config are relative to `folder`, where the config lies.

    Raises:
        SpecError, CheckpointError, DataError, BudgetError: what is wrong with factories, weights, images or budget.
    """
    if config.budget is None:
        raise BudgetError("the config names no budget (a line such as `budget: 60% params` would be right)")
    budget = Budget.parse(config.budget)
    networks = make_networks(config, folder, device=device)
    images = read_images(config, folder, networks)
    train, test = divide(images, config)
    metrics, further = metrics_of(config)
    return Problem(
        networks=networks,
        identity=[{task: weights_hash(net) for task, net in networks.items()}, images_hash(images), config.held_out],
        train=train,
        probe=probe_of(train, config),
        test=test,
        targets=donor_outputs(networks, test, config.batch_size),
        metrics=metrics,
        budget=budget,
        objective=config.objective,
        locations=config.locations,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        baselines=tuple(config.baselines),
        random_trees=config.random_trees,
        seed=config.seed,
        donor=config.donor,
        further=further,
    )


def make_networks(config: RunConfig, folder: Path, *, device: str | None = None) -> dict[str, nn.Module]:
    """Call the factories and constructors, and load the weights.

    Raises:
        SpecError: a factory or constructor that is missing or makes no network.
        CheckpointError: weights that are missing, damaged or do not fit.
    """
    networks = {}
    for task, wanted in config.networks.items():
        network = make_network(wanted, folder)
        if not isinstance(network, nn.Module):
            raise SpecError(f"factory {wanted.factory!r} of {task!r} returned {type(network).__name__}, not a network")
        if wanted.weights is not None:
            load_weights(network, folder / wanted.weights)
        networks[task] = network.eval() if device is None else network.eval().to(device)
    return networks


def make_network(wanted: NetworkConfig, folder: Path) -> Any:
    """Call the factory or the constructor of one network."""
    if wanted.constructor is not None:
        with torch.random.fork_rng(devices=[]):  # initial weights draw random numbers
            return create(wanted.constructor, **wanted.arguments)
    return call_factory(str(wanted.factory), folder)


def divide(images: Source, config: RunConfig) -> tuple[Samples, Samples]:
    """Divide the images, shuffled by the seed, into those that are trained on and those that are held out.

    Raises:
        DataError: too few images, or images that cannot be read by number.
    """
    samples = read_samples(images)
    train, test = division(samples.known_count, config)
    return samples.subset(train), samples.subset(test)


def division(count: int, config: RunConfig) -> tuple[list[int], list[int]]:
    """The numbers of the samples that are trained on, and of those that are held out.

    Raises:
        DataError: too few samples.
    """
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed)).tolist()
    held_out = round(config.held_out * count)
    if held_out < 1 or count - held_out < 3:
        raise DataError(f"{count} images are too few for a held-out share of {config.held_out:g} and a probe of 3")
    return order[held_out:], order[:held_out]


def probe_of(train: Source, config: RunConfig) -> Any:
    """The images on which the networks are compared."""
    samples = read_samples(train)
    chosen = samples.take(torch.arange(min(config.probe, samples.known_count)))
    return placed(chosen.inputs, torch.device("cpu"))


def metrics_of(config: RunConfig) -> tuple[dict[str, Metric], dict[str, tuple[str, Metric]]]:
    """The metric of each task, and further ones by label: agreement with the single-task network."""
    classes = [task for task, network in config.networks.items() if network.kind == "classification"]
    metrics = {
        task: on_first_tensor(top1_agreement() if task in classes else explained_variance()) for task in config.networks
    }
    further = {
        f"{task}: {metric.name}": (task, on_first_tensor(metric))
        for task in classes
        for metric in (kl_divergence(), explained_variance())
    }
    return metrics, further


def read_images(config: RunConfig, folder: Path, networks: Mapping[str, nn.Module]) -> Samples:
    """Read the images into memory, or leave a large folder or a data set to be read batch by batch.

    Args:
        config: where they are.
        folder: where the config is.
        networks: what will be called with them.

    Raises:
        DataError: not exactly one source, or images that cannot be read.
    """
    form = call_form(next(iter(networks.values())))
    if one_source(config.images) == "factory":
        factory = str(config.images.factory)
        return _checked_images(call_factory(factory, folder), factory, form)
    return read_samples(_images_from_files(config.images, folder), form)


def _images_from_files(wanted: ImagesConfig, folder: Path) -> Tensor | ImageFolder:
    scale: dict[str, Any] = {"mean": wanted.mean, "std": wanted.std}
    if wanted.npz is not None:
        return load_images(folder / wanted.npz, size=wanted.size, **scale)
    files = ImageFolder(folder / cast(Path, wanted.folder), size=wanted.size, **scale)
    if len(files) * 3 * wanted.size**2 * 4 > BYTES_IN_MEMORY:
        return files
    return load_images(folder / cast(Path, wanted.folder), size=wanted.size, **scale)


def _checked_images(images: Any, factory: str, form: CallForm) -> Samples:
    """What a factory returned, as the networks take it; channels-last images, too, are converted."""
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
            f"factory {factory!r} must return images (K, C, H, W), a dict or tuple of tensors, or a Dataset: {error}"
        ) from error
    return samples


def donor_outputs(networks: Mapping[str, nn.Module], images: Source, batch_size: int) -> dict[str, Tensor]:
    """First floating-point tensor of each network's output, for all images, each of which is read once."""
    samples = read_samples(images)
    found: dict[str, list[Tensor]] = {task: [] for task in networks}
    with torch.no_grad():
        for batch in samples.batches(batch_size):
            for task, network in networks.items():
                inputs = placed(batch.inputs, next(network.parameters()).device)
                found[task].append(first_tensor(call(network, inputs)).cpu())
    return {task: torch.cat(outputs) for task, outputs in found.items()}


def on_first_tensor(metric: Metric) -> Metric:
    """Apply a metric to the first floating-point tensor of an output, which may be a dict or a tuple."""
    return replace(metric, sums=lambda output, target: metric.sums(first_tensor(output), target))


def first_tensor(output: Any) -> Tensor:
    """First floating-point tensor of a nested output.

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
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def images_hash(images: Source) -> str:
    """Content hash of images, which are read once; of files the names, sizes and times instead."""
    digest = hashlib.sha256()
    samples = read_samples(images)
    if isinstance(samples.source, ImageFolder):
        for path in samples.source.paths:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        digest.update(f"{samples.source.size} {samples.source.mean} {samples.source.std}".encode())
        return digest.hexdigest()
    for batch in [Batch(samples.source)] if samples.kind == "memory" else samples.batches(64):
        for leaf in leaves(batch.inputs):
            digest.update(leaf.contiguous().numpy().tobytes())
    return digest.hexdigest()
