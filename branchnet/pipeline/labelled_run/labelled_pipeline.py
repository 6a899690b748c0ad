"""The whole way with labels: networks that are missing, the tree, the branched network, and what was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from branchnet.clustering import Budget
from branchnet.data.samples import Samples, read_samples
from branchnet.errors import BudgetError, DataError
from branchnet.pipeline.config.run_config import RunConfig, RunOptions
from branchnet.pipeline.full_run import finish
from branchnet.pipeline.labelled_run.given_networks import refuse_untrained
from branchnet.pipeline.labelled_run.label_sources import LabelSources, read_sources
from branchnet.pipeline.labelled_run.labelled_training import LabelledTraining
from branchnet.pipeline.labelled_run.prepared_samples import InputsAlone
from branchnet.pipeline.labelled_run.single_training import fit_settings, train_missing, untrained
from branchnet.pipeline.measuring_steps import judge
from branchnet.pipeline.plans.dry_run import Plan, plan_distillation
from branchnet.pipeline.plans.run_plan import plan_run
from branchnet.pipeline.problem import VALIDATION, Problem, probe_of, weights_hash
from branchnet.pipeline.run_result import RunResult
from branchnet.pipeline.steps import find_trees, train_networks
from branchnet.pipeline.workspace import Workspace
from branchnet.stages import split_all
from branchnet.stages.interface import call_form
from branchnet.utils.progress import silence


def run_labelled(
    config: RunConfig,
    config_folder: Path,
    networks: Mapping[str, nn.Module],
    *,
    folder: str | os.PathLike[str],
    command: str = "",
    quiet: bool = False,
) -> RunResult:
    """Train what is missing, find the tree on training inputs, train the branched network, and measure on `test`.

    Interrupted, the same call goes on from what is finished.

    Args:
        config: the config, with `supervised: true`.
        config_folder: where it lies.
        networks: its networks by task; those that are to be trained are trained in place.
        folder: where the results go.
        command: what the page names as the way to make all of this again.
        quiet: no progress and no messages on stderr.

    Returns:
        The result, as `branchnet.run` gives it; metrics are those of the labels of `test`.

    Raises:
        SpecError: a config without the sources that are needed; a factory's network that seems untrained.
        DataError: sources that cannot be read, or have a sample in common.
        BudgetError: no budget, or one below the smallest tree.
    """
    budget = _budget(config)
    sources = read_sources(config, config_folder, networks)
    with Workspace(folder, quiet=quiet) as workspace, ExitStack() as inside:
        if quiet:
            inside.enter_context(silence())
        workspace.claim({"tasks": sorted(networks), "data": sources.identity[0]})
        refuse_untrained(config, networks, sources)
        trained = train_missing(config, config_folder, networks, sources, workspace, quiet=quiet)
        problem = labelled_problem(config, trained, sources, budget)
        trees = find_trees(problem, workspace)
        branched = train_networks(problem, trees, workspace)
        results = judge(problem, trees, branched, workspace)
        return finish(problem, trees, branched["branched"], results, workspace, command=command)


def labelled_problem(
    config: RunConfig, networks: Mapping[str, nn.Module], sources: LabelSources, budget: Budget
) -> Problem:
    """The problem: networks are compared on training inputs, and judged by the labels of `test`.

    Whole networks are distilled where the config gives `steps`, in its section `distill` or outside; else the stitching
    layers alone.

    Args:
        config: the config.
        networks: trained networks by task.
        sources: samples with labels.
        budget: the size that the branched network may have.

    Returns:
        The problem.
    """
    if sources.test is None:
        raise DataError("the config names no `test`; expected samples with labels to measure on")
    asked = "steps" in config.model_fields_set or (config.distill is not None and config.distill.steps is not None)
    options = RunOptions.checked(**(config.options() | ({} if asked else {"steps": 0})))
    form = call_form(next(iter(networks.values())))
    train = _shuffled(read_samples(InputsAlone(sources.train), form), config.seed)
    validation = _shuffled(read_samples(InputsAlone(sources.validation), form), config.seed, most=VALIDATION)
    return Problem(
        networks=networks,
        train=train,
        validation=validation,
        probe=probe_of(train, options),
        test=read_samples(InputsAlone(sources.test), form),
        targets={},
        metrics={task: sources.metrics[task] for task in networks},
        budget=budget,
        options=options,
        identity=[{task: weights_hash(net) for task, net in networks.items()}, sources.identity],
        kinds=sources.kinds(config),
        labelled=LabelledTraining(
            sources.train, sources.validation, sources.test, sources.losses, fit_settings(config)
        ),
    )


def plan_labelled(config: RunConfig, config_folder: Path, networks: Mapping[str, nn.Module]) -> Plan:
    """The plan: training what is missing, then a run.

    Args:
        config: the config, with `supervised: true`.
        config_folder: where it lies.
        networks: its networks by task.

    Returns:
        The plan.
    """
    sources = read_sources(config, config_folder, networks)
    problem = labelled_problem(config, networks, sources, _budget(config))
    missing = untrained(config)
    plan = Plan("run")
    if missing:
        staged = split_all(networks, problem.example, locations=config.locations, depth=config.depth)
        costs = [cost for task in missing for cost in (*staged[task].costs, staged[task].head_cost)]
        count = min(config.processes, len(missing))
        plan = plan_distillation(
            plan,
            f"train {len(missing)} networks on labels, {config.fit.steps} batches each"
            + (f", {count} at the same time (the time is of all of them)" if count > 1 else ""),
            [networks[task] for task in missing],
            problem.example,
            steps=config.fit.steps,
            batch_size=config.fit.batch_size,
            activations=sum(cost.activation_bytes for cost in costs),
        )
    rest = plan_run(problem)
    return Plan("run", (*plan.steps, *rest.steps), rest.notes)


def _budget(config: RunConfig) -> Budget:
    if config.budget is None:
        raise BudgetError("the config names no budget; expected a line such as `budget: 60% params`")
    return Budget.parse(config.budget)


def _shuffled(samples: Samples, seed: int, most: int | None = None) -> Samples:
    order = torch.randperm(samples.known_count, generator=torch.Generator().manual_seed(seed)).tolist()
    return samples.subset(order[:most])
