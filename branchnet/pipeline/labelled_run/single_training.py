"""Training the single-task networks that a config names without weights, one after another or in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchnet.deploy import load_weights, save_weights
from branchnet.pipeline.config.config_sources import make_network
from branchnet.pipeline.config.run_config import RunConfig
from branchnet.pipeline.labelled_run.label_sources import LabelSources, read_sources
from branchnet.pipeline.labelled_run.prepared_samples import OneTask
from branchnet.pipeline.problem import weights_hash
from branchnet.pipeline.workspace import Workspace
from branchnet.training import fit
from branchnet.utils.progress import silence
from branchnet.utils.random_state import seeded

OF_SEVERAL_TASKS = ("weights", "divide_rate")
"""Settings of the section `fit` that mean nothing for one task."""


def untrained(config: RunConfig) -> list[str]:
    """The tasks whose networks are to be trained: as the config says, else those of a constructor, without weights."""
    return [
        task
        for task, net in config.networks.items()
        if net.train or (net.train is None and net.constructor is not None and net.weights is None)
    ]


def train_missing(
    config: RunConfig,
    folder: Path,
    networks: Mapping[str, nn.Module],
    sources: LabelSources,
    workspace: Workspace,
    *,
    quiet: bool = False,
) -> dict[str, nn.Module]:
    """Train the networks that have no weights, or read back those that are finished.

    Each starts from what its constructor or factory makes under a seed of its own, and keeps its best state on the
    validation samples. `processes` of the config are used where several are missing.

    Args:
        config: the config.
        folder: where it lies.
        networks: all networks by task; those without weights are trained in place.
        sources: samples with labels.
        workspace: where the weights are kept.
        quiet: no progress bars in other processes.

    Returns:
        All networks by task.
    """
    missing = untrained(config)

    def key(task: str) -> list[Any]:
        wanted = config.networks[task].model_dump(mode="json", exclude={"kind"})
        started = [] if config.networks[task].factory is None else [weights_hash(_fresh(config, folder, task))]
        return [sources.identity, task, wanted, config.fit.model_dump(mode="json"), config.seed, *started]

    def load(task: str, path: Path) -> nn.Module:
        load_weights(networks[task], path)
        return networks[task].eval()

    def make(task: str, pool: Executor | None, unfinished: Path | None) -> nn.Module:
        if pool is None or unfinished is None:
            return train_single(config, folder, networks[task], sources, task, unfinished)
        written = unfinished.with_name(f"{unfinished.stem}.trained.safetensors")
        device = str(next(networks[task].parameters()).device)
        text = config.model_dump_json(exclude_unset=True)
        pool.submit(_train_in_process, text, folder, task, unfinished, written, device, quiet).result()
        trained = load(task, written)
        written.unlink()
        return trained

    def finished(task: str, pool: Executor | None) -> None:
        name = f"single-{list(config.networks).index(task)}.safetensors"
        workspace.step(name, key(task), make=partial(make, task, pool), save=save_weights, load=partial(load, task))

    if config.processes == 1 or len(missing) < 2 or workspace.directory is None:
        for task in missing:
            finished(task, None)
    else:
        workspace.take()
        count = min(config.processes, len(missing))
        context = multiprocessing.get_context("spawn")  # a fork would take locks of torch's threads along
        with ProcessPoolExecutor(count, mp_context=context) as pool, ThreadPoolExecutor(count) as threads:
            for done in [threads.submit(finished, task, pool) for task in missing]:
                done.result()
    return dict(networks)


def train_single(
    config: RunConfig, folder: Path, network: nn.Module, sources: LabelSources, task: str, unfinished: Path | None
) -> nn.Module:
    """Train one network from the weights that its factory or constructor gives it, in place.

    Args:
        config: how it is trained.
        folder: where the config lies.
        network: the network, whose weights are replaced.
        sources: samples with labels.
        task: its task.
        unfinished: a file to resume from.

    Returns:
        The network, in eval mode.
    """
    network.load_state_dict(_fresh(config, folder, task).state_dict())
    settings = {key: value for key, value in fit_settings(config).items() if key not in OF_SEVERAL_TASKS}
    fit(
        network,
        OneTask(sources.train, task),
        sources.losses[task],
        validation=OneTask(sources.validation, task),
        seed=config.seed,
        checkpoint=unfinished,
        description=f"train {task}",
        **settings,
    )
    return network.eval()


def _fresh(config: RunConfig, folder: Path, task: str) -> nn.Module:
    """The network of a task as its constructor or factory makes it, under a seed of its own."""
    with seeded(config.seed * 1009 + list(config.networks).index(task)):
        made: nn.Module = make_network(config.networks[task], folder)
    return made


def fit_settings(config: RunConfig) -> dict[str, Any]:
    """The section `fit`, as `branchnet.fit` takes it."""
    section = config.fit
    whole = {"steps": section.steps, "batch_size": section.batch_size, "learning_rate": section.learning_rate}
    return section.given() | whole


def _train_in_process(
    text: str, folder: Path, task: str, unfinished: Path, written: Path, device: str, quiet: bool
) -> None:
    """Train one network in a process of its own, and leave its weights in a file."""
    config = RunConfig.model_validate_json(text)
    torch.set_num_threads(max(1, torch.get_num_threads() // config.processes))
    made = {name: make_network(wanted, folder) for name, wanted in config.networks.items()}
    network = made[task].to(device)
    with silence() if quiet else nullcontext():
        train_single(config, folder, network, read_sources(config, folder, made), task, unfinished)
    save_weights(network, written)
