"""What `demo` and `run` leave in the result folder and print: pictures, numbers, the network, a page, a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import branchnet
from branchnet.builder import BranchedNetwork
from branchnet.cli.printing import print_json
from branchnet.clustering import Tree, clustering_cost
from branchnet.data.samples import read_samples
from branchnet.pipeline.search_inputs import random_points
from branchnet.pipeline.steps import Problem, Results, Trees, as_json
from branchnet.pipeline.workspace import Workspace, save_json
from branchnet.reporting import (
    Comparison,
    FrontPlot,
    Page,
    SamplesPlot,
    TaskSamples,
    affinity_plot_data,
    draw_affinity,
    draw_front,
    draw_samples,
    draw_tree,
    front_plot_data,
    report,
    samples_plot_data,
    save_figure,
    tree_plot_data,
)
from branchnet.specification import Architecture


def finish(
    problem: Problem,
    trees: Trees,
    branched: BranchedNetwork,
    results: Results,
    workspace: Workspace,
    *,
    command: str,
    samples: Sequence[TaskSamples] = (),
    as_text: bool = True,
) -> None:
    """Write everything into the result folder; print the comparison and how the result is loaded again.

    Args:
        command: the shell command that makes all of this again.
        samples: truth and predictions of the first test images.
        as_text: print tables and sentences; otherwise the measurements as JSON.
    """
    directory = workspace.directory
    found = Architecture.from_search(
        trees.chosen, networks=trees.staged, affinity=trees.affinity, budget=problem.budget, seed=problem.seed
    )
    branchnet.save(branched, directory, architecture=Architecture.from_network(branched, search=found.search))
    trees.affinity.save(directory / "affinity.npz")
    measured = as_json(problem, trees, results)
    save_json(measured, directory / "metrics.json")
    grid = sample_grid(problem, samples) if samples else None
    write_pictures(problem, trees, grid, directory)
    shell = f"branchnet show {shlex.quote(str(directory))}"
    unnamed = any(constructor is None for constructor in branched.constructors.values())
    networks = ", networks={task: single_task_network, ...}" if unnamed else ""
    python = f"import branchnet; network = branchnet.load({json.dumps(str(directory))}{networks})"
    Page(
        title="One branched network",
        summary=f"{len(problem.networks)} single-task networks, merged as far as a budget of {problem.budget} asks. "
        + verdict(results.comparison),
        asked={"budget": str(problem.budget), "objective": problem.objective, "tasks": ", ".join(problem.networks)},
        chosen=trees.chosen,
        report=report(branched, problem.example, latency=False),
        affinity=trees.affinity,
        front=front_data(problem, trees),
        comparison=results.comparison,
        samples=grid,
        stability=results.stability,
        commands=[command, shell, f"python -c {shlex.quote(python)}"],
    ).save(directory / "report.html")
    if not as_text:
        print_json(measured)
        return
    console = Console()
    console.print(str(trees.chosen.tree), markup=False, highlight=False)
    console.print(f"the same tree in {100 * results.stability.same_tree:.0f}% of bootstrap replicates", highlight=False)
    print_tables(results, console)
    console.print(verdict(results.comparison), highlight=False)
    console.print(f"results, with report.html: {directory}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"load it again:  python -c {shlex.quote(python)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"           or:  {shell}", markup=False, highlight=False, soft_wrap=True)


def sample_grid(problem: Problem, samples: Sequence[TaskSamples]) -> SamplesPlot:
    """The first test images with truth and predictions below."""
    shown = len(next(iter(samples[0].predictions.values())))
    images = read_samples(problem.test).take(torch.arange(shown)).inputs
    assert isinstance(images, torch.Tensor)
    return samples_plot_data(images.movedim(1, -1).cpu().numpy(), samples)


def write_pictures(problem: Problem, trees: Trees, grid: SamplesPlot | None, directory: Path) -> None:
    """Draw the affinities, the tree, the Pareto front and the samples as PNG files."""
    save_figure(draw_affinity(affinity_plot_data(trees.affinity, tree=trees.chosen.tree)), directory / "affinity.png")
    stages = trees.first
    tree = tree_plot_data(trees.chosen.tree, locations=stages.locations, stage_params=stages.costs.params)
    save_figure(draw_tree(tree), directory / "tree.png")
    save_figure(draw_front(front_data(problem, trees)), directory / "front.png")
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
        objective=problem.objective,
        budget=problem.budget if in_parameters else None,
    )
    return front_plot_data(
        trees.front,
        trees.size(Tree.separate(chosen.tasks, chosen.depth), "params"),
        chosen=trees.chosen if in_parameters else None,
        random=[
            (trees.size(tree, "params"), clustering_cost(tree, trees.affinity, objective=problem.objective))
            for tree in others
        ]
        + drawn,
        budget=trees.chosen.limit if in_parameters else None,
        objective=f"clustering cost ({problem.objective})",
    )


def print_tables(results: Results, console: Console) -> None:
    """Print parameters, FLOPs, latency, metrics and Delta of every network."""
    comparison = results.comparison
    sizes = "one multiply-add counts as one FLOP; latency: median for one input"
    console.print(comparison.size_table().to_rich(sizes))
    console.print(comparison.task_table().to_rich())
    for label, values in results.further.items():
        console.print(f"{label}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), markup=False)


def verdict(comparison: Comparison) -> str:
    """What was gained and lost, in one or two sentences."""
    separate, branched = comparison.networks[:2]
    share = f"{100 * (branched.params or 0) / (separate.params or 1):.0f}% of the parameters"
    way = next(reversed(list(branched.latency)), None)
    if way is not None and way in separate.latency:
        ratio = separate.latency[way].median / branched.latency[way].median
        share += f" and {ratio:.2g} times the speed ({way})"
    delta = comparison.delta(branched)
    first = f"The branched network has {share} of the separate networks, metrics {_change(delta)} on average."
    random = [comparison.delta(network) for network in comparison.networks if network.name.startswith("random")]
    others = {network.name: comparison.delta(network) for network in comparison.networks if network.name == "shared"}
    parts = [f"the fully shared network's are {_change(value)}" for value in others.values()]
    if random:
        spread = f", from {min(random):+.1f}% to {max(random):+.1f}%" if len(random) > 1 else ""
        mean = _change(sum(random) / len(random))
        one, some = (
            "a random tree's of about its size are",
            f"those of {len(random)} random trees of about its size are",
        )
        parts.append(f"{one} {mean}" if len(random) == 1 else f"{some} {mean} on average{spread}")
    if not parts:
        return first
    note = ""
    if random and len(random) > 1 and min(random) <= delta <= max(random):
        note = " So the choice of the tree made no difference beyond chance."
    if random and delta < min(random):
        note = " So the chosen tree was the wrong one here."
    if any(value >= delta for value in others.values()):
        note = " So sharing everything would have been the better choice here: it is smaller, and no worse."
    return f"{first} For comparison, {'; '.join(parts)}.{note}"


def _change(delta: float) -> str:
    return f"{abs(delta):.1f}% {'better' if delta >= 0 else 'worse'}"
