"""What a config names, made: networks with their weights, images, and the functions of one's own modules."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from branchnet.data import ImageFolder, load_images
from branchnet.data.samples import Samples, read_samples
from branchnet.deploy import load_weights
from branchnet.deploy.hub.hub_weights import hub_file, is_hub_file
from branchnet.errors import BranchnetError, DataError, SpecError
from branchnet.models import create
from branchnet.pipeline.config.preprocessing import preprocessing
from branchnet.pipeline.config.run_config import ImagesConfig, NetworkConfig, RunConfig
from branchnet.pipeline.problem import as_samples
from branchnet.utils.installed_torch.torchvision_operators import import_with_torchvision

MOVED_MODULES = {"branchnet.cli.scene_tasks": "branchnet.pipeline.demo.scene_tasks"}
"""Modules that configs written by `branchnet demo` 0.1.0 name, and where they are now."""
BYTES_IN_MEMORY = 2 * 2**30


def make_networks(config: RunConfig, folder: Path, *, device: torch.device | None = None) -> dict[str, nn.Module]:
    """Call the factories and constructors, and load the weights.

    Args:
        config: the config.
        folder: where it lies; paths in it are relative to that.
        device: where the networks shall be.

    Returns:
        The networks by task, in eval mode.

    Raises:
        SpecError: a factory or constructor that is missing or makes no network.
        CheckpointError: weights that are missing, damaged or do not fit, or that would have to be downloaded.
    """
    networks = {}
    for task, wanted in config.networks.items():
        network = make_network(wanted, folder)
        if not isinstance(network, nn.Module):
            made = f"factory {wanted.factory!r} of {task!r} returned {type(network).__name__}"
            raise SpecError(f"{made}; expected a torch.nn.Module")
        if wanted.weights is not None:
            load_weights(network, _weights_file(wanted.weights, folder, download=config.download))
        networks[task] = network.eval() if device is None else network.eval().to(device)
    return networks


def _weights_file(weights: Path, folder: Path, *, download: bool) -> Path:
    name = weights.as_posix()
    return hub_file(name, download=download) if is_hub_file(name) else folder / weights


def make_network(wanted: NetworkConfig, folder: Path) -> Any:
    """Call the factory or the constructor of one network."""
    if wanted.constructor is not None:
        with torch.random.fork_rng(devices=[]):  # initial weights draw random numbers
            return create(wanted.constructor, **wanted.arguments)
    return call_factory(str(wanted.factory), folder)


def read_images(config: RunConfig, folder: Path, networks: Mapping[str, nn.Module] | None = None) -> Samples:
    """Read the images into memory, or leave a large folder or a data set to be read batch by batch.

    Args:
        config: the config.
        folder: where it lies.
        networks: the networks by task, which may say what images they want.

    Returns:
        The reader of K images.

    Raises:
        DataError: not exactly one source, or images that cannot be read.
        SpecError: a config without images, or networks that want different ones.
    """
    wanted = config.images
    if wanted is None:
        raise SpecError("the config names no `images`; expected unlabelled images: a folder, an npz or a factory")
    source = one_source(wanted)
    if source == "factory":
        return as_samples(call_factory(str(wanted.factory), folder), f"images: factory {wanted.factory!r}")
    done = preprocessing(config, networks or {})
    how: dict[str, Any] = {"size": done.size, "mean": done.mean, "std": done.std}
    if source == "npz":
        return read_samples(load_images(folder / cast(Path, wanted.npz), **how))
    files = ImageFolder(folder / cast(Path, wanted.folder), **how)
    if len(files) * 3 * done.size**2 * 4 > BYTES_IN_MEMORY:
        return read_samples(files)
    return read_samples(load_images(folder / cast(Path, wanted.folder), **how))


def one_source(images: ImagesConfig) -> str:
    """Name the one source of images that the config gives.

    Args:
        images: that section of the config.

    Returns:
        `"folder"`, `"npz"` or `"factory"`.

    Raises:
        DataError: none, or more than one.
    """
    given = [name for name in ("folder", "npz", "factory") if getattr(images, name) is not None]
    if len(given) != 1:
        raise DataError(f"images: exactly one of folder, npz and factory is needed; given: {given or 'none'}")
    return given[0]


def find_function(name: str, folder: Path) -> Any:
    """The function that `package.module:function` names; modules next to the config are found too.

    Args:
        name: the name.
        folder: where the config lies.

    Returns:
        The function.

    Raises:
        SpecError: no such module or function.
    """
    module_name, function_name = name.split(":")
    module_name = MOVED_MODULES.get(module_name, module_name)
    with _importable(folder):
        importlib.invalidate_caches()  # a module may have been written since its folder was last looked into
        try:
            module = import_with_torchvision(module_name)
        except ModuleNotFoundError as error:
            raise SpecError(f"{name!r}: {error} (looked next to the config and in the environment)") from error
        except Exception as error:
            raise SpecError(f"{name!r}: importing {module_name} raised {_said(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise SpecError(f"{name!r}: {module_name} has no function {function_name!r}")
    return function


def find_loss(name: str, folder: Path) -> Callable[[Any, Any], Tensor]:
    """The loss that `package.module:function` names.

    Args:
        name: the name.
        folder: where the config lies.

    Returns:
        A function of (output, labels of a batch).

    Raises:
        SpecError: no such function, a class, or one that takes other arguments.
    """
    found: Callable[[Any, Any], Tensor] = find_function(name, folder)
    if inspect.isclass(found):
        raise SpecError(f"loss {name!r} is a class; expected a function of an output and the labels of a batch")
    try:
        inspect.signature(found).bind(None, None)
    except TypeError as error:
        raise SpecError(f"loss {name!r} is called with an output and the labels of a batch: {error}") from error
    except ValueError:  # compiled functions have no signature
        pass
    return found


def call_factory(name: str, folder: Path) -> Any:
    """Call the function that `package.module:function` names without arguments.

    Args:
        name: the name.
        folder: where the config lies.

    Returns:
        What the function returns.

    Raises:
        SpecError: no such module or function, or one that needs arguments or raises.
    """
    function = find_function(name, folder)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise SpecError(f"factory {name!r} is called without arguments: {error}") from error
    try:
        return function()
    except BranchnetError as error:
        raise type(error)(f"factory {name!r}: {error}") from error
    except Exception as error:
        raise SpecError(f"factory {name!r} raised {_said(error)}") from error


def _said(error: Exception) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
