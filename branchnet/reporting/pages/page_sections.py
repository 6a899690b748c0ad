"""The sections of the page; each is None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from branchnet.clustering.trees.text_drawing import tree_text
from branchnet.reporting.comparison import Comparison
from branchnet.reporting.cost_tables import (
    branch_table,
    latency_table,
    node_table,
    stage_table,
    stitch_table,
    summary_table,
    task_table,
    tasks_named,
)
from branchnet.reporting.measured_tree import MeasuredTree
from branchnet.reporting.pages.markup import (
    Section,
    bullets,
    escaped,
    facts,
    folded,
    paragraph,
    picture,
    preformatted,
    table,
)
from branchnet.reporting.plots.affinity_plot import affinity_plot_data, draw_affinity
from branchnet.reporting.plots.front_plot import FrontPlot, draw_front
from branchnet.reporting.plots.latency_plot import draw_latency, latency_plot_data
from branchnet.reporting.plots.measured_plot import draw_measured, measured_plot_data
from branchnet.reporting.plots.metric_plot import draw_metrics
from branchnet.reporting.plots.samples_plot import SamplesPlot, draw_samples
from branchnet.reporting.plots.tree_plot import draw_tree, tree_plot_data
from branchnet.reporting.tables import Column, Table
from branchnet.reporting.training_steps import step_table
from branchnet.reporting.units import percent, si, signed

if TYPE_CHECKING:
    from branchnet.affinity.tensor import Affinity
    from branchnet.clustering.certainty.tree_stability import Stability
    from branchnet.clustering.search_result import SearchResult
    from branchnet.clustering.trees.tree import Tree
    from branchnet.reporting.summary import Report

_PAIRS_LISTED = 2000
_NORMAL_95 = 1.96


def cards(report: Report | None, comparison: Comparison | None) -> str:
    """The figures that one looks for first."""
    found: list[tuple[str, str, str]] = []
    if report:
        costs = report.costs
        found.append(
            (
                "parameters",
                percent(costs.params / costs.separate_params),
                f"{si(costs.params)} of {si(costs.separate_params)}",
            )
        )
        found.append(
            ("FLOPs", percent(costs.flops / costs.separate_flops), f"{si(costs.flops)} of {si(costs.separate_flops)}")
        )
    if comparison and len(comparison.networks) > 1:
        baseline, network = comparison.networks[:2]
        for way in (way for way in network.latency if way in baseline.latency):
            ratio = baseline.latency[way].median / network.latency[way].median
            found.append((f"speed, {way}", f"{ratio:.2f} \N{MULTIPLICATION SIGN}", f"against {baseline.name}"))
        found.append(("Δ over all tasks", f"{signed(comparison.delta(network))} %", f"against {baseline.name}"))
    elif report and report.latencies and report.baseline != "branched":
        ratio = report.latencies[report.baseline].median / report.latencies["branched"].median
        found.append(("speed", f"{ratio:.2f} \N{MULTIPLICATION SIGN}", "against separate"))
    items = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}<small>{escaped(note)}</small></dd></div>"
        for name, value, note in found
    )
    return f'<dl class="cards">{items}</dl>' if found else ""


def asked(given: Mapping[str, str], chosen: SearchResult | None) -> Section | None:
    """What was asked, and what answered it."""
    pairs = dict(given)
    if chosen is not None:
        pairs["tasks"] = f"{len(chosen.tree.tasks)}: {', '.join(chosen.tree.tasks)}"
        pairs["objective"] = chosen.objective
        if limited := [one for one in chosen.resources if np.isfinite(one.limit)]:
            pairs["limit"] = ", ".join(f"{si(one.limit)} {one.unit}{one.whose}" for one in limited)
        sizes = (f"{si(one.size)} {one.unit}{one.whose}" for one in chosen.resources)
        pairs["size of the chosen tree"] = ", ".join(sizes)
        pairs["clustering cost"] = f"{chosen.cost:.4g}"
        if chosen.first_difference is not None:
            pairs["what limits sharing"] = str(chosen.first_difference)
        if chosen.uncounted:
            pairs["counted as nothing"] = ", ".join(chosen.uncounted)
        pairs["found by"] = f"{chosen.method} ({chosen.why})" if chosen.why else chosen.method
    return Section("asked", "What was asked", facts(pairs)) if pairs else None


def tree(shown: Tree | None, report: Report | None, affinity: Affinity | None) -> Section | None:
    """The tree, drawn and in words."""
    if shown is None:
        return None
    locations = report.costs.locations if report else affinity.locations if affinity else None
    params = report.costs.node_params() if report else None
    marks = report.costs.stitch_marks() if report else {}
    plot = tree_plot_data(shown, locations=locations, stage_params=params, stitched=marks)
    caption = (
        "From the input on the left to the tasks on the right. Grey nodes serve several tasks, coloured ones just one."
    )
    if params:
        caption += " Thickness shows parameters; below: those of one node \N{MULTIPLICATION SIGN} nodes."
    if marks:
        caption += " Diamonds are stitching layers: another task's network goes on from there."
    drawing = picture(
        draw_tree(plot), "tree", f"Tree of {len(shown.tasks)} tasks over {len(plot.locations)} stages", caption
    )
    return Section("tree", "The tree", drawing + folded("The tree in words", preformatted(tree_text(shown, marks))))


def results(comparison: Comparison | None) -> Section | None:
    """Every network and every task."""
    if comparison is None:
        return None
    steps = step_table(comparison)
    content = table(comparison.size_table()) + ("" if steps is None else table(steps))
    content += table(comparison.task_table())
    if len(comparison.networks) > 1:
        caption = f"Change of each metric against {comparison.baseline.name}; Δ is the mean (Maninis et al. 2019)."
        content += picture(draw_metrics(comparison.metric_plot()), "metrics", "Change of every task", caption)
    return Section("results", "Results", content)


def tried(trees: Sequence[MeasuredTree]) -> Section | None:
    """The trees that were measured before training: predicted against measured, and every task's loss."""
    if not trees:
        return None
    content = ""
    if any(one.predicted is not None for one in trees):
        plot = measured_plot_data(trees)
        caption = (
            f"Each point is a tree, built with stitching layers and measured on held-out inputs: 0 as the tasks' own "
            f"networks, 1 as constant answers. The chosen one was proposed by {plot.proposer}."
        )
        if trees[0].weights is not None:
            caption += " Losses of classifiers count in nats of their constant answers, as they are chosen by."
        if plot.agreement == plot.agreement:
            caption += f" Prediction and measurement agree on the order of {plot.agreement:.0%} of pairs."
        content = picture(draw_measured(plot), "measured", "Predicted against measured loss of every tree", caption)
    return Section("tried", "Trees that were tried", content + folded("Every tree", table(_tried_table(trees))))


def latency(comparison: Comparison | None, report: Report | None) -> Section | None:
    """How fast the networks are."""
    plot = comparison.latency_plot() if comparison else None
    content = ""
    if plot is not None:
        content = picture(draw_latency(plot), "latency", "Latency of every network")
    elif report and report.latencies:
        bars = latency_plot_data(report.latencies, baseline=report.baseline)
        content = picture(draw_latency(bars), "latency", "Latency")
        content += table(latency_table(report.latencies, report.baseline))
    return Section("latency", "Latency", content) if content else None


def samples(plot: SamplesPlot | None) -> Section | None:
    """Predictions next to the truth."""
    if plot is None:
        return None
    return Section("samples", "Predictions", picture(draw_samples(plot), "samples", "Predictions next to the truth"))


def costs(report: Report | None) -> Section | None:
    """Parameters and FLOPs, and how they were counted."""
    if report is None:
        return None
    counted = report.costs
    content = table(summary_table(counted)) + table(stage_table(counted)) + bullets(counted.notes(), "notes")
    content += table(stitch_table(counted)) if counted.stitches else ""
    content += folded("By task", table(task_table(counted))) + folded("By branch", table(branch_table(counted)))
    content += folded("By node", table(node_table(counted, report.node_latencies)))
    return Section("costs", "Costs", content)


def affinity(measured: Affinity | None, shown: Tree | None) -> Section | None:
    """The heat maps, and every pair with its interval."""
    if measured is None:
        return None
    fits = shown is not None and len(shown.partitions) == len(measured.locations)
    fits = fits and shown is not None and set(shown.tasks) == set(measured.tasks)
    plot = affinity_plot_data(measured, tree=shown if fits else None)
    caption = "How well each pair of tasks could share each stage; one colour scale for all locations."
    if fits:
        caption += " Frames: tasks that share the stage."
    if plot.shows_errors:
        caption += " ±: half the width of the 95 % interval."
    elif plot.unclear is not None:
        caption += " Dots: the 95 % interval holds the mean of the location."
    content = picture(draw_affinity(plot), "affinity", "Affinity of every pair of tasks at every location", caption)
    pairs = _pairs_table(measured)
    if len(pairs.rows) <= _PAIRS_LISTED:
        content += folded("Every pair in numbers", table(pairs))
    else:
        content += paragraph(f"The {len(pairs.rows):,} pairs are in the affinity file.")
    return Section("affinity", "Affinity", content)


def front(plot: FrontPlot | None) -> Section | None:
    """Cost against size."""
    if plot is None:
        return None
    caption = (
        "Each point is a tree that no other tree beats in both size and cost; the shaded area is within the budget."
    )
    return Section(
        "front", "What other budgets would give", picture(draw_front(plot), "front", "Pareto front", caption)
    )


def certainty(
    given: Sequence[str], chosen: SearchResult | None, measured: Affinity | None, stability: Stability | None
) -> Section | None:
    """What is known about how good the choice is."""
    lines: list[str] = []
    if chosen is not None and chosen.proven:
        lines.append("No tree within the budget has a lower clustering cost: this is proven.")
    elif chosen is not None:
        lines.append(
            f"Not proven best: its clustering cost is {chosen.cost:.4g}, and no tree is below {chosen.lower_bound:.4g}."
        )
    if chosen is not None and chosen.forced:
        lines.append(f"Shared {chosen.forced_note()}.")
    if stability is not None:
        others = chosen is not None and stability.tree != chosen.tree
        which = "The tree that the affinities propose (another one was chosen)" if others else "The same tree"
        lines.append(f"{which} is best in {stability.same_tree:.0%} of {stability.replicates} replicates.")
    if measured is not None and measured.reliability is not None:
        noise = measured.reliability.noise(measured.locations)
        lines += [f"At {name} the order of the pairs is mostly seed noise." for name in noise]
    lines += given
    if chosen is not None:
        lines.append(
            "The clustering cost judges trees before they are trained; how well it predicts the result varies."
        )
    if not lines:
        return None
    nodes = "" if stability is None else folded("How often each node comes back", table(_stability_table(stability)))
    return Section("certainty", "How sure the choice is", bullets(lines) + nodes)


def commands(lines: Sequence[str]) -> Section | None:
    """How to make all of this again."""
    if not lines:
        return None
    return Section("commands", "Make it again", "".join(map(preformatted, lines)))


def _tried_table(trees: Sequence[MeasuredTree]) -> Table:
    number = "{:.3f}".format
    columns = [Column("proposed by"), Column("nodes per stage"), Column("size", si)]
    columns += [Column("predicted", number), Column("measured", number)]
    columns += [Column(task, number) for task in trees[0].tree.tasks]
    rows = [
        (
            one.by,
            " ".join(map(str, one.tree.widths)),
            one.size,
            one.predicted,
            one.mean,
            *(one.losses[task] for task in trees[0].tree.tasks),
        )
        for one in sorted(trees, key=lambda one: (one.mean, one.size))
    ]
    return Table("Loss before training", tuple(columns), tuple(rows))


def _stability_table(stability: Stability) -> Table:
    rows = tuple(
        (stage, tasks_named(cluster), share)
        for stage, (clusters, shares) in enumerate(zip(stability.tree.partitions, stability.nodes, strict=True))
        for cluster, share in zip(clusters, shares, strict=True)
    )
    columns = (Column("stage", str), Column("tasks that share it"), Column("replicates", percent))
    return Table("Nodes", columns, rows)


def _pairs_table(measured: Affinity) -> Table:
    columns = [Column("location"), Column("task"), Column("with"), Column("affinity", "{:.3f}".format)]
    bounds = _intervals(measured)
    if bounds is not None:
        columns += [Column("95 % from", "{:.3f}".format), Column("to", "{:.3f}".format)]
    rows: list[tuple[str | float, ...]] = []
    for d, i, j in np.ndindex(*measured.values.shape):
        if i < j or (measured.directed and i != j):
            names = (measured.locations[d], measured.tasks[i], measured.tasks[j])
            row: tuple[str | float, ...] = (*names, float(measured.values[d, i, j]))
            rows.append(row if bounds is None else (*row, float(bounds[0][d, i, j]), float(bounds[1][d, i, j])))
    return Table("Affinity of every pair", tuple(columns), tuple(rows))


def _intervals(measured: Affinity) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Bootstrap percentiles where samples are held, else the normal approximation, else nothing."""
    if measured.samples is not None:
        return measured.interval()
    if measured.standard_errors is None:
        return None
    half = _NORMAL_95 * measured.standard_errors
    return measured.values - half, measured.values + half
