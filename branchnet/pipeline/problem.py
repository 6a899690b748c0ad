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
from torch.utils.data import Subset

from branchnet.clustering import Budget
from branchnet.data import ImageFolder, load_images, to_images
from branchnet.data.samples import Inputs, batches, count_samples, take
from branchnet.deploy import load_weights
from branchnet.errors import BudgetError, DataError, SpecError
from branchnet.models.constructors import create
from branchnet.pipeline.run_config import NetworkConfig, RunConfig, call_factory, one_source
from branchnet.pipeline.steps import Problem
from branchnet.stages import call
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
    images = read_images(config, folder)
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


def divide(images: Inputs, config: RunConfig) -> tuple[Inputs, Inputs]:
    """Divide the images, shuffled by the seed, into those that are trained on and those that are held out.

    Raises:
        DataError: too few images.
    """
    order = torch.randperm(count_samples(images), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held_out = round(config.held_out * len(order))
    if held_out < 1 or len(order) - held_out < 3:
        raise DataError(f"{len(order)} images are too few for a held-out share of {config.held_out:g} and a probe of 3")
    return _subset(images, order[held_out:]), _subset(images, order[:held_out])


def probe_of(train: Inputs, config: RunConfig) -> Any:
    """The images on which the networks are compared."""
    return take(train, torch.arange(min(config.probe, count_samples(train))), torch.device("cpu"))


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


def read_images(config: RunConfig, folder: Path) -> Inputs:
    """Read the images into memory, or leave a large folder on disk to be read batch by batch.

    Raises:
        DataError: not exactly one source, or images that cannot be read.
    """
    wanted = config.images
    source = one_source(wanted)
    if source == "factory":
        return _checked_images(call_factory(str(wanted.factory), folder), str(wanted.factory))
    scale: dict[str, Any] = {"mean": wanted.mean, "std": wanted.std}
    if source == "npz":
        return load_images(folder / cast(Path, wanted.npz), size=wanted.size, **scale)
    files = ImageFolder(folder / cast(Path, wanted.folder), size=wanted.size, **scale)
    if len(files) * 3 * wanted.size**2 * 4 > BYTES_IN_MEMORY:
        return files
    return load_images(folder / cast(Path, wanted.folder), size=wanted.size, **scale)


def _checked_images(images: Any, factory: str) -> Inputs:
    """What a factory returned, as the networks take it; arrays, uint8 and channels-last images are converted."""
    named = isinstance(images, Mapping) or (isinstance(images, tuple) and images)
    if named and all(isinstance(leaf, Tensor) and leaf.dim() for leaf in pytree.tree_leaves(images)):
        return cast(Inputs, images)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if not isinstance(images, Tensor) or images.dim() < 2:
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(
            f"factory {factory!r} must return images (K, C, H, W), or a dict or tuple of tensors; it returned {found}"
        )
    channels_last = images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3)
    return to_images(images) if images.dtype == torch.uint8 or channels_last else images


def donor_outputs(networks: Mapping[str, nn.Module], images: Inputs, batch_size: int) -> dict[str, Tensor]:
    """First floating-point tensor of each network's output, for all images."""
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


def images_hash(images: Inputs) -> str:
    """Content hash of images in memory; of names, sizes and times of files that are read on demand."""
    digest = hashlib.sha256()
    if isinstance(images, ImageFolder):
        for path in images.paths:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        digest.update(f"{images.size} {images.mean} {images.std}".encode())
    else:
        for leaf in pytree.tree_leaves(images):
            digest.update(leaf.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _subset(images: Inputs, rows: list[int]) -> Inputs:
    if isinstance(images, Tensor):
        return images[rows]
    if isinstance(images, Mapping | tuple):
        return cast(Inputs, take(images, torch.tensor(rows), torch.device("cpu")))
    return Subset(cast(Any, images), rows)  # type: ignore[return-value]
