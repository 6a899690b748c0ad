"""A whole run as a config file asks for it, with labels or without."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from branchnet.errors import BudgetError, SpecError
from branchnet.pipeline.config.config_sources import make_networks, read_images
from branchnet.pipeline.config.run_config import RunConfig
from branchnet.pipeline.full_run import run
from branchnet.pipeline.labelled_run.labelled_pipeline import run_labelled
from branchnet.pipeline.run_result import RunResult
from branchnet.specification.validation import validate
from branchnet.utils.installed_torch.devices import usable_device


def run_from_config(
    config: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> RunResult:
    """Do what `branchnet run CONFIG` does: with `supervised: true` from samples with labels, else from images alone.

    With labels, networks of constructors without weights are trained first, the branched network is trained on labels,
    too, and all are measured by those of `test`. A config names Python factories, which are imported and called: run
    only those that you trust.

    Args:
        config: the YAML file; `branchnet schema --config` says which fields there are.
        folder: where the results go, and where finished steps are kept, so that the same call goes on where it was
            interrupted; by default next to the config and named after it.
        device: where the networks run; by default on the CPU.
        quiet: no progress and no messages on stderr.

    Returns:
        The result, as `branchnet.run` gives it.

    Raises:
        SpecError: every problem of the config.
        DataError: sources that cannot be read, or have a sample in common; a device that cannot be used.
        BudgetError: no budget, or one below the smallest tree.

    >>> import branchnet
    >>> branchnet.run_from_config("missing.yaml")
    Traceback (most recent call last):
        ...
    branchnet.errors.SpecError: missing.yaml: No such file or directory
    """
    path = Path(config)
    if path.is_dir():
        raise SpecError(f"{path} is a folder; expected a config, such as {path / 'run.yaml'}")
    settings = validate(RunConfig, path)
    networks = make_networks(settings, path.parent, device=None if device is None else usable_device(device))
    results = Path(folder) if folder is not None else default_folder(path)
    command = f"branchnet.run_from_config({str(config)!r}, {str(results)!r})"
    return run_configured(settings, path.parent, networks, folder=results, command=command, quiet=quiet)


def run_configured(
    settings: RunConfig,
    config_folder: Path,
    networks: Mapping[str, nn.Module],
    *,
    folder: Path,
    command: str = "",
    quiet: bool = False,
) -> RunResult:
    """Do what a config that is read asks for.

    Args:
        settings: the config.
        config_folder: where it lies.
        networks: its networks.
        folder: where the results go.
        command: what the page names as the way to make all of this again.
        quiet: no progress and no messages on stderr.

    Returns:
        The result.

    Raises:
        BudgetError: a config without a budget.
    """
    if settings.budget is None:
        raise BudgetError("the config names no budget; expected a line such as `budget: 60% params`")
    if settings.supervised:
        return run_labelled(settings, config_folder, networks, folder=folder, command=command, quiet=quiet)
    return run(
        networks,
        read_images(settings, config_folder, networks),
        str(settings.budget),
        folder=folder,
        kinds=settings.kinds,
        command=command,
        quiet=quiet,
        **settings.options(),
    )


def default_folder(config: Path) -> Path:
    """Where results of a config go: next to it, and named after it.

    Args:
        config: the file.
    """
    return config.with_name(f"{config.stem}-branched")
