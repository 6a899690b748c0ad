"""What a run leaves in its folder: the network, the affinities, the measurements, pictures and a page."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from branchnet.builder import BranchedNetwork
from branchnet.clustering import Tree, clustering_cost
from branchnet.data.samples import read_samples
from branchnet.deploy import save
from branchnet.pipeline.problem import Problem
from branchnet.pipeline.run_result import RunResult
from branchnet.pipeline.search_inputs import random_points
from branchnet.pipeline.steps import Trees
from branchnet.pipeline.workspace import RESULTS, save_json
from branchnet.reporting import (
    FrontPlot,
    Page,
    SamplesPlot,
    TaskSamples,
    affinity_plot_data,
    draw_affinity,
    draw_front,
    draw_measured,
    draw_samples,
    draw_tree,
    front_plot_data,
    measured_plot_data,
    samples_plot_data,
    save_figure,
    tree_plot_data,
)
from branchnet.reporting.conclusion import verdict
from branchnet.specification import Architecture
from branchnet.stitching import stitch_costs


def write_results(
    result: RunResult,
    problem: Problem,
    trees: Trees,
    directory: Path,
    *,
    command: str = "",
    samples: Sequence[TaskSamples] = (),
) -> None:
    """Write everything into the result folder.

    Args:
        result: what was found and measured.
        problem: what was asked.
        trees: what the search found.
        directory: the folder.
        command: what makes all of this again.
        samples: truth and predictions of the first test images.
    """
    found = Architecture.from_search(
        result.search,
        networks=trees.staged,
        affinity=result.affinity,
        budget=problem.budget,
        seed=problem.options.seed,
    )
    save(result.network, directory, architecture=Architecture.from_network(result.network, search=found.search))
    result.affinity.save(directory / "affinity.npz")
    if result.losses is not None:
        result.losses.save(directory / "stitch_affinity.npz")
    save_json(result.to_dict(), directory / RESULTS)
    grid = sample_grid(problem, samples) if samples else None
    write_pictures(problem, trees, grid, directory)
    Page(
        title="One branched network",
        summary=f"{len(problem.networks)} single-task networks, merged as far as a budget of {problem.budget} asks. "
        + verdict(result.comparison),
        asked={
            "budget": str(problem.budget),
            "objective": problem.options.objective,
            "proposed by": result.proposer,
            "tasks": ", ".join(problem.networks),
        },
        chosen=result.search,
        report=result.report,
        affinity=result.affinity,
        front=front_data(problem, trees),
        measured=result.measured,
        comparison=result.comparison,
        samples=grid,
        stability=result.stability,
        certainty=result.advice.sentences,
        commands=[*([command] if command else []), *ways_to_load(result.network, directory)],
    ).save(directory / "report.html")


def ways_to_load(branched: BranchedNetwork, directory: Path) -> tuple[str, str]:
    """The shell commands that show the saved network, and load it in Python.

    Args:
        branched: the network.
        directory: its folder.

    Returns:
        Two commands.
    """
    unnamed = any(constructor is None for constructor in branched.constructors.values())
    networks = ", networks={task: single_task_network, ...}" if unnamed else ""
    python = f"import branchnet; network = branchnet.load({json.dumps(str(directory))}{networks})"
    return f"branchnet show {shlex.quote(str(directory))}", f"python -c {shlex.quote(python)}"


def sample_grid(problem: Problem, samples: Sequence[TaskSamples]) -> SamplesPlot:
    """The first test images with truth and predictions below."""
    shown = len(next(iter(samples[0].predictions.values())))
    images = read_samples(problem.test).take(torch.arange(shown)).inputs
    assert isinstance(images, torch.Tensor)
    return samples_plot_data(images.movedim(1, -1).cpu().numpy(), samples)


def write_pictures(problem: Problem, trees: Trees, grid: SamplesPlot | None, directory: Path) -> None:
    """Draw the affinities, the tree, the Pareto front, the measured trees and the samples as PNG files."""
    save_figure(draw_affinity(affinity_plot_data(trees.affinity, tree=trees.chosen.tree)), directory / "affinity.png")
    stages = trees.first
    tree = tree_plot_data(trees.chosen.tree, locations=stages.locations, stage_params=stages.costs.params)
    save_figure(draw_tree(tree), directory / "tree.png")
    save_figure(draw_front(front_data(problem, trees)), directory / "front.png")
    if trees.choice.measured:
        save_figure(draw_measured(measured_plot_data(trees.choice.measured)), directory / "measured.png")
    if grid is not None:
        save_figure(draw_samples(grid), directory / "samples.png")


def front_data(problem: Problem, trees: Trees) -> FrontPlot:
    """The Pareto front over parameters, with the chosen tree and random ones, trained and not."""
    chosen = trees.chosen.tree
    in_parameters = problem.budget.unit == "params"
    others = [tree for name, tree in trees.compared.items() if name.startswith("random")]
    drawn = random_points(
        trees.affinity,
        trees.first.costs,
        {task: network.head_cost for task, network in trees.staged.items()},
        unit="params",
        objective=problem.options.objective,
        budget=problem.budget if in_parameters else None,
        stitch_sizes=stitch_costs(trees.first),
    )
    return front_plot_data(
        trees.front,
        trees.size(Tree.separate(chosen.tasks, chosen.depth, chosen.depths), "params"),
        chosen=trees.chosen if in_parameters else None,
        random=[
            (trees.size(tree, "params"), clustering_cost(tree, trees.affinity, objective=problem.options.objective))
            for tree in others
        ]
        + drawn,
        budget=trees.chosen.limit if in_parameters and math.isfinite(trees.chosen.limit) else None,
        objective=f"clustering cost ({problem.options.objective})",
    )
