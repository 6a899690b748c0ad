"""What `demo` and `run` leave in the result folder and print: pictures, numbers, the network, a table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import branchnet
from branchnet import Architecture, BranchedNetwork, Tree
from branchnet.cli.study import Problem, Row, Trees, as_json
from branchnet.cli.workspace import Workspace, save_json
from branchnet.clustering import clustering_cost
from branchnet.reporting.affinity_plot import affinity_plot_data, draw_affinity
from branchnet.reporting.figures import save_figure
from branchnet.reporting.front_plot import FrontPlot, draw_front, front_plot_data
from branchnet.reporting.samples_plot import TaskSamples, draw_samples, samples_plot_data
from branchnet.reporting.tree_plot import draw_tree, tree_plot_data
from branchnet.reporting.units import si, signed


def finish(
    problem: Problem,
    trees: Trees,
    branched: BranchedNetwork,
    rows: Sequence[Row],
    workspace: Workspace,
    samples: Sequence[TaskSamples] = (),
) -> None:
    """Write everything into the result folder; print the comparison and how the result is loaded again."""
    directory = workspace.directory
    heads = {task: network.head_cost for task, network in trees.staged.items()}
    architecture = Architecture.from_search(
        trees.chosen,
        networks=trees.staged,
        affinity=trees.affinity,
        head_costs=heads,
        budget=problem.budget,
        seed=problem.seed,
    )
    branchnet.save(branched, directory, architecture=architecture)
    trees.affinity.save(directory / "affinity.npz")
    save_json(as_json(problem, trees, rows), directory / "metrics.json")
    write_pictures(problem, trees, directory)
    if samples:
        images = problem.test[: len(samples[0].truth)].movedim(1, -1).numpy()
        save_figure(draw_samples(samples_plot_data(images, samples)), directory / "samples.png")
    console = Console()
    console.print(str(trees.chosen.tree), markup=False, highlight=False)
    print_table(problem, rows, console)
    console.print(f"results: {directory}", highlight=False)
    console.print(
        f'load it again:  python -c "import branchnet; net = branchnet.load({str(directory)!r})"', markup=False
    )
    console.print(f"           or:  branchnet show {shlex.quote(str(directory))}", markup=False)


def write_pictures(problem: Problem, trees: Trees, directory: Path) -> None:
    """Draw the affinities, the tree and the Pareto front as PNG files."""
    save_figure(draw_affinity(affinity_plot_data(trees.affinity, tree=trees.chosen.tree)), directory / "affinity.png")
    tree = tree_plot_data(
        trees.chosen.tree, locations=trees.first.locations, stage_params=list(trees.first.costs.params)
    )
    save_figure(draw_tree(tree), directory / "tree.png")
    save_figure(draw_front(front_data(problem, trees)), directory / "front.png")


def front_data(problem: Problem, trees: Trees) -> FrontPlot:
    """The Pareto front over parameters with the chosen and the random tree marked."""
    chosen = trees.chosen.tree
    separate = trees.size(Tree.separate(chosen.tasks, chosen.depth), "params")
    others = [tree for name, tree in trees.compared.items() if name == "random"]
    return front_plot_data(
        trees.front,
        separate,
        chosen=trees.chosen if problem.budget.unit == "params" else None,
        random=[
            (trees.size(tree, "params"), clustering_cost(tree, trees.affinity, objective=problem.objective))
            for tree in others
        ],
        budget=trees.chosen.limit if problem.budget.unit == "params" else None,
        objective=f"clustering cost ({problem.objective})",
    )


def print_table(problem: Problem, rows: Sequence[Row], console: Console) -> None:
    """Print parameters, FLOPs, latency, metrics and Delta of every network."""
    table = Table(title="FLOPs count one multiply-add as one; change against the single-task network in brackets")
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    table.add_row("parameters", *(si(row.params) for row in rows))
    table.add_row("FLOPs", *(si(row.flops) for row in rows))
    for how in rows[0].latency:
        table.add_row(
            f"latency, {how} (ms)", *(f"{row.latency[how]:.2f}" if how in row.latency else "–" for row in rows)
        )
    table.add_section()
    for task, metric in problem.metrics.items():
        arrow = "↑" if metric.larger_is_better else "↓"
        cells = [
            f"{row.metrics[task]:.4g}" + (f" ({signed(row.changes[task])}%)" if row is not rows[0] else "")
            for row in rows
        ]
        table.add_row(f"{task}: {metric.name} {arrow}", *cells)
    for label in problem.further:
        table.add_row(label, *(f"{row.further[label]:.4g}" for row in rows))
    table.add_section()
    table.add_row("[bold]Delta (%)", *(f"[bold]{signed(row.delta)}" for row in rows))
    console.print(table)
