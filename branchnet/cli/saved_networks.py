"""Branched networks that verbs are given: read from the folders of earlier verbs, or built from what describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchnet.cli.loading import placed_networks, read_networks, read_sharing, read_source, read_specification
from branchnet.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from torch import nn

    from branchnet.builder import BranchedNetwork, GroupedNetworks, SharingNetwork
    from branchnet.specification import Architecture, GroupedArchitecture


def read_branched(
    folder: Path, config: Path | None, *, device: str | None = None, dtype: str | None = None
) -> BranchedNetwork:
    """Load a saved network, of several networks what serves; arguments and errors as for `read_saved`."""
    from branchnet.builder.network.grouped_networks import as_one_network

    return as_one_network(read_saved(folder, config, device=device, dtype=dtype))


def read_saved(
    folder: Path, config: Path | None, *, device: str | None = None, dtype: str | None = None
) -> BranchedNetwork | GroupedNetworks:
    """Load a saved network, or several; networks without a named constructor come from `config`.

    Args:
        folder: what `branchnet build` wrote.
        config: the config with the networks that have no constructor.
        device: where the network shall be.
        dtype: the type of its weights.

    Returns:
        The network, in eval mode.

    Raises:
        SpecError: a folder without a specification, or networks that must be passed: the option is named.
        CheckpointError: weights that are missing, damaged or do not fit.
    """
    unnamed = unnamed_tasks(read_specification(folder))
    return _loaded(folder, config, unnamed, device, dtype)  # type: ignore[no-any-return]


def read_saved_sharing(
    folder: Path, config: Path | None, *, device: str | None = None, dtype: str | None = None
) -> SharingNetwork | None:
    """Load a saved network of tasks that are computed one at a time; None where `folder` holds another one.

    Args:
        folder, config, device, dtype: as for `read_saved`, and so are the errors.

    Returns:
        The network, in eval mode, or None.
    """
    spec = read_sharing(folder)
    if spec is None:
        return None
    return _loaded(folder, config, unnamed_tasks(spec.architecture), device, dtype)  # type: ignore[no-any-return]


def _loaded(folder: Path, config: Path | None, unnamed: tuple[str, ...], device: str | None, dtype: str | None) -> Any:
    from branchnet.deploy import load
    from branchnet.deploy.saving import WEIGHTS

    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a saved network; expected a folder with {WEIGHTS}")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; expected a folder that `branchnet build` wrote")
    if unnamed and config is None:
        raise SpecError(
            f"{folder} does not say how the networks of {', '.join(unnamed)} are made: pass the config, --config"
        )
    saved = load(folder, read_networks(config, unnamed) if unnamed else {})
    return placed_networks({"": saved}, device, dtype)[""]


def unnamed_tasks(spec: Architecture | GroupedArchitecture) -> tuple[str, ...]:
    """The tasks whose networks a specification does not say how to make."""
    from branchnet.specification import Architecture

    each = [spec] if isinstance(spec, Architecture) else [group.architecture for group in spec.groups]
    return tuple(dict.fromkeys(t for one in each for t, constructor in one.constructors.items() if constructor is None))


def built_or_saved(
    path: Path, config: Path | None, *, device: str | None = None, dtype: str | None = None
) -> BranchedNetwork:
    """Load a saved network, or build that of an architecture, with the config's weights or random ones.

    Args:
        path: a folder, or an architecture.
        config: the config with the networks, or None.
        device: where the network shall be.
        dtype: the type of its weights.

    Returns:
        The network, in eval mode.
    """
    from branchnet.builder.network.grouped_networks import as_one_network

    if path.is_dir():
        return read_branched(path, config, device=device, dtype=dtype)
    spec = read_specification(path)
    branched = as_one_network(built(spec, read_networks(config, spec.tasks), config))
    return placed_networks({"": branched}, device, dtype)[""]  # type: ignore[return-value]


def built(
    spec: Architecture | GroupedArchitecture, networks: Mapping[str, nn.Module], config: Path | None
) -> BranchedNetwork | GroupedNetworks:
    """Build what a specification describes, with inputs of the config where it does not describe any; in eval mode."""
    from branchnet.specification import Architecture

    first = spec if isinstance(spec, Architecture) else spec.groups[0].architecture
    example = read_source(config).example if config is not None and first.input is None else None
    made = spec.build(networks, example=example)
    made.eval()
    return made


def separate_networks(branched: BranchedNetwork, config: Path | None) -> dict[str, nn.Module]:
    """The single-task networks of a branched one: the config's, or new ones of the same constructors.

    Args:
        branched: the branched network.
        config: the config with the networks, or None.

    Returns:
        The networks by task; none where one of them cannot be made.
    """
    if config is not None:
        return read_networks(config, branched.tasks)
    made = {task: constructor.create() for task, constructor in branched.constructors.items() if constructor}
    return made if len(made) == len(branched.tasks) else {}
