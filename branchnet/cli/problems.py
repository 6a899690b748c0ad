"""From a run config to a problem: networks with weights, images split three ways, the donors' outputs as targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from branchnet import Budget
from branchnet.builder import load_weights
from branchnet.cli.config import RunConfig, call_factory, one_source
from branchnet.cli.study import Problem
from branchnet.data import ImageFolder, load_images
from branchnet.errors import BudgetError, DataError, SpecError
from branchnet.stages import call
from branchnet.training import Metric, explained_variance, kl_divergence, top1_agreement
from branchnet.training.inputs import Inputs, batches, count_samples, take

BYTES_IN_MEMORY = 2 * 2**30


def problem_from_config(config: RunConfig, folder: Path) -> Problem:
    """Make networks and images; paths in the config are relative to `folder`, where the config lies.

    Raises:
        SpecError, CheckpointError, DataError, BudgetError: what is wrong with factories, weights, images or budget.
    """
    budget = Budget.parse(config.budget)
    if budget.unit == "latency":
        raise BudgetError("a run takes a budget of parameters or FLOPs; branchnet.search takes measured milliseconds")
    networks = make_networks(config, folder)
    images = read_images(config, folder)
    order = torch.randperm(count_samples(images), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held_out = round(config.held_out * len(order))
    if held_out < 1 or len(order) - held_out < 3:
        raise DataError(f"{len(order)} images are too few for a held-out share of {config.held_out:g} and a probe of 3")
    test, train = (_subset(images, rows) for rows in (order[:held_out], order[held_out:]))
    probe = torch.arange(min(config.probe, count_samples(train)))
    targets = donor_outputs(networks, test, config.batch_size)
    classes = [task for task, network in config.networks.items() if network.kind == "classification"]
    return Problem(
        networks=networks,
        identity=[{task: weights_hash(net) for task, net in networks.items()}, images_hash(images), config.held_out],
        train=train,
        probe=take(train, probe, torch.device("cpu")),
        test=test,
        targets=targets,
        metrics={
            task: on_first_tensor(top1_agreement() if task in classes else explained_variance()) for task in networks
        },
        budget=budget,
        objective=config.objective,
        locations=config.locations,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        baselines=tuple(config.baselines),
        seed=config.seed,
        donor=config.donor,
        further={
            f"{task}: {metric.name}": (task, on_first_tensor(metric))
            for task in classes
            for metric in (kl_divergence(), explained_variance())
        },
    )


def make_networks(config: RunConfig, folder: Path) -> dict[str, nn.Module]:
    """Call the factories and load the weights.

    Raises:
        SpecError: a factory that is missing or returns no network.
        CheckpointError: weights that are missing, damaged or do not fit.
    """
    networks = {}
    for task, wanted in config.networks.items():
        network = call_factory(wanted.factory, folder)
        if not isinstance(network, nn.Module):
            raise SpecError(f"factory {wanted.factory!r} of {task!r} returned {type(network).__name__}, not a network")
        if wanted.weights is not None:
            load_weights(network, folder / wanted.weights)
        networks[task] = network.eval()
    return networks


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


def _checked_images(images: Any, factory: str) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"factory {factory!r} must return images as a tensor (K, C, H, W); it returned {found}")
    return images


def donor_outputs(networks: Mapping[str, nn.Module], images: Inputs, batch_size: int) -> dict[str, Tensor]:
    """First floating-point tensor of each network's output, for all images."""
    with torch.no_grad():
        return {
            task: torch.cat(
                [
                    first_tensor(call(network, take(images, index, torch.device("cpu"))))
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
        digest.update(cast(Tensor, images).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _subset(images: Inputs, rows: list[int]) -> Inputs:
    if isinstance(images, Tensor):
        return images[rows]
    return Subset(cast(Any, images), rows)  # type: ignore[return-value]
