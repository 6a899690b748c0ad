"""The files that verbs are given: configs, specifications, affinities; each read with its errors.

Saved networks are read in `saved_networks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchnet.errors import DataError, SpecError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from branchnet.affinity import Affinity, PairMeasurements
    from branchnet.data.samples import Samples
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.specification import Architecture, GroupedArchitecture, SharingArchitecture


@dataclass(frozen=True)
class Source:
    """Single-task networks, and inputs for them.

    Attributes:
        networks: by task, with their weights, on the wanted device and of the wanted type.
        example: one input.
        images: all inputs; of a config with labels those of `train`; None where a specification describes nothing but
            their form.
        config: what the config says; None for a specification.
    """

    networks: dict[str, nn.Module]
    example: Any
    images: Samples | None = None
    config: RunConfig | None = None


def read_config(path: Path) -> RunConfig:
    """Read the config of a run.

    Args:
        path: the YAML file.

    Returns:
        The config.

    Raises:
        SpecError: every problem of the file, or a folder instead of one.
    """
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.specification.validation import validate

    if path.is_dir():
        raise SpecError(f"{path} is a folder; expected a config, such as {path / 'run.yaml'}")
    return validate(RunConfig, path)


def changed(config: RunConfig, **options: Any) -> RunConfig:
    """The config with the options that were given on the command line, None for one that was not.

    Args:
        config: the config.
        **options: values by name.

    Returns:
        The changed config.

    Raises:
        SpecError: a value that the config could not hold.
    """
    from pydantic import ValidationError

    from branchnet.specification.validation import model_problems

    given = {key: value for key, value in options.items() if value is not None}
    kept = config.model_dump(exclude_unset=True)
    if isinstance(kept.get("distill"), dict):  # an option stands for the section's setting, too
        kept["distill"] = {key: value for key, value in kept["distill"].items() if key not in given}
    try:
        return type(config).model_validate(kept | given)
    except ValidationError as error:
        problems = model_problems(error, type(config))
        raise SpecError([f"--{str(keys[0]).replace('_', '-')}: {text}" for keys, text in problems]) from error


def is_specification(path: Path) -> bool:
    """Whether a YAML file claims to be one architecture or several: it has a `schema_version`, which no config has."""
    from branchnet.specification.strict_yaml import read_document

    data = read_document(path).data
    return isinstance(data, dict) and not data.keys().isdisjoint(("schema_version", "tree", "groups", "sharing"))


def is_label_description(path: Path) -> bool:
    """Whether a YAML file claims to describe samples with labels: it has `tasks`, and none of what others have."""
    from branchnet.specification.strict_yaml import read_document

    data = read_document(path).data
    return isinstance(data, dict) and "tasks" in data and "networks" not in data and not is_specification(path)


def _is_config(path: Path) -> bool:
    """Whether a YAML file claims to be a config: it has `images` or `train`, which no architecture has, and no tree."""
    from branchnet.specification.strict_yaml import read_document

    data = read_document(path).data
    return isinstance(data, dict) and bool({"images", "train"} & set(data)) and not is_specification(path)


def read_spec(path: Path) -> Architecture:
    """Read the specification of one network, or the one of a saved network's folder.

    Args:
        path: a YAML file, or a folder that holds one.

    Returns:
        The specification.

    Raises:
        SpecError: as `read_specification`, or a specification of several networks.
    """
    from branchnet.specification import Architecture

    described = read_specification(path)
    if not isinstance(described, Architecture):
        raise SpecError(f"{path} describes {len(described.groups)} networks; expected the architecture of one")
    return described


def read_specification(path: Path) -> Architecture | GroupedArchitecture:
    """Read a specification, or the one of a saved network's folder.

    Args:
        path: a YAML file, or a folder that holds one.

    Returns:
        The specification, of one network or of several.

    Raises:
        SpecError: every problem of the file, a config, or a folder without a specification.
    """
    from branchnet.specification import Architecture, GroupedArchitecture
    from branchnet.specification.grouped.grouped_architecture import is_grouped

    if read_sharing(path) is not None:
        raise SpecError(
            f"{path} describes tasks that are computed one at a time, which `branchnet build`, `distill`, `export` and "
            "`validate` take; expected the architecture of nested sharing"
        )
    path = _file_of(path)
    try:
        return GroupedArchitecture.load(path) if is_grouped(path) else Architecture.load(path)
    except SpecError as error:
        if path.is_file() and _is_config(path):
            expected = "expected an architecture, as `branchnet split` and `branchnet search` write it"
            raise SpecError(f"{path} is a config; {expected}") from error
        raise


def read_sharing(path: Path) -> SharingArchitecture | None:
    """Read a specification of tasks that are computed one at a time, or the one of a saved network's folder.

    Args:
        path: a YAML file, or a folder that holds one.

    Returns:
        The specification; None of any other file.

    Raises:
        SpecError: every problem of the file, or a folder without a specification.
    """
    from branchnet.specification import SharingArchitecture
    from branchnet.specification.grouped.sharing_architecture import is_sharing

    file = _file_of(path)
    return SharingArchitecture.load(file) if file.is_file() and is_sharing(file) else None


def _file_of(path: Path) -> Path:
    """The specification of a folder; of a file itself."""
    from branchnet.deploy.saving import ARCHITECTURE

    if not path.is_dir():
        return path
    if not (path / ARCHITECTURE).exists():
        raise SpecError(f"{path} holds no {ARCHITECTURE}; expected a folder that `branchnet build` wrote")
    return path / ARCHITECTURE


def read_affinity(path: Path) -> Affinity:
    """Read an affinity file.

    Args:
        path: the .npz file.

    Returns:
        The affinities.

    Raises:
        DataError: there is no such file.
        AffinityError: it is not an affinity, or damaged.
    """
    from branchnet.affinity import Affinity

    if not path.is_file():
        raise DataError(f"{path} is not a file; expected one that `branchnet affinity` wrote")
    return Affinity.load(path)


def read_pairs(path: Path, spec: Architecture) -> PairMeasurements:
    """Read a table of measured pairs of the tasks of a specification.

    Args:
        path: the .csv file.
        spec: the specification, whose locations are the table's branch points.

    Returns:
        The measurements, tasks in the order of the specification.

    Raises:
        DataError: there is no such file.
        AffinityError: other tasks or branch points, or a table that is no table of pairs.
    """
    from branchnet.affinity import PairMeasurements

    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a table of measured pairs")
    return PairMeasurements.read(path, tasks=spec.tasks, locations=spec.locations)


def read_source(path: Path, *, device: str | None = None, dtype: str | None = None) -> Source:
    """Make the networks of a config or of a specification (with fresh weights), and an input for them.

    Args:
        path: a config or a specification.
        device: where the networks shall be.
        dtype: the type of weights and inputs.

    Returns:
        The networks and inputs.

    Raises:
        SpecError, DataError, CheckpointError: what is wrong with the file, or with what it names.
    """
    import torch

    from branchnet.data.collation import placed as placed_copy
    from branchnet.pipeline.config.config_sources import make_networks
    from branchnet.specification.realisation import interface_of, make_all

    if not path.is_dir() and is_specification(path):
        spec = read_spec(path)
        networks = make_all(spec, {})
        example = interface_of(spec).random()
        return Source(placed_networks(networks, device, dtype), placed(example, device, dtype))
    config = read_config(path)
    networks = placed_networks(make_networks(config, path.parent), device, dtype)
    images = _inputs(config, path.parent, networks)
    example = placed_copy(images.take(torch.tensor([0])).inputs, torch.device("cpu"))
    return Source(networks, placed(example, device, dtype), images, config)


def _inputs(config: RunConfig, folder: Path, networks: Mapping[str, nn.Module]) -> Samples:
    """The images that a config names, or the inputs of its samples with labels to train on."""
    from branchnet.data.samples import read_samples
    from branchnet.pipeline.config.config_sources import read_images
    from branchnet.pipeline.labelled_run.label_sources import read_sources
    from branchnet.pipeline.labelled_run.prepared_samples import InputsAlone
    from branchnet.stages.interface import call_form

    form = call_form(next(iter(networks.values())))
    if config.images is None:
        return read_samples(InputsAlone(read_sources(config, folder, networks).train), form)
    return read_samples(read_images(config, folder, networks), form)


def read_networks(config: Path | None, tasks: tuple[str, ...] | None = None) -> dict[str, nn.Module]:
    """The networks of a config with their weights, in the order of `tasks`; none without a config.

    Args:
        config: the config, or None.
        tasks: which ones; None for all.

    Returns:
        The networks by task.

    Raises:
        SpecError: tasks that the config does not name.
    """
    from branchnet.pipeline.config.config_sources import make_networks

    if config is None:
        return {}
    networks = make_networks(read_config(config), config.parent)
    if tasks is None:
        return networks
    if missing := [task for task in tasks if task not in networks]:
        raise SpecError(f"{config}: networks: {', '.join(missing)} is missing; the file names {', '.join(networks)}")
    return {task: networks[task] for task in tasks}


def placed_networks(networks: Mapping[str, nn.Module], device: str | None, dtype: str | None) -> dict[str, nn.Module]:
    """The networks in eval mode on `device` and of `dtype`, where they are given.

    Raises:
        DataError: a device that this machine does not have.
    """
    place, kind = checked_device(device), _dtype(dtype)
    return {task: network.eval().to(device=place, dtype=kind) for task, network in networks.items()}


def placed(inputs: Any, device: str | None, dtype: str | None) -> Any:
    """The tensors on `device`, floating-point ones of `dtype`."""
    from torch import Tensor

    from branchnet.utils.installed_torch.torch_internals import pytree

    place, kind = checked_device(device), _dtype(dtype)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device=place, dtype=kind if tensor.is_floating_point() else None)

    return pytree.tree_map_only(Tensor, move, inputs)


def checked_device(name: str | None) -> torch.device | None:
    """The device of that name; None for none.

    Raises:
        DataError: see `usable_device`.
    """
    from branchnet.utils.installed_torch.devices import usable_device

    return None if name is None else usable_device(name, "--device")


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)


def not_a_config(path: Path) -> SpecError:
    """What is raised where a file has no images and a config is needed."""
    return SpecError(f"{path} holds no images; expected a config, as `branchnet run` takes it")
