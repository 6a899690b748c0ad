"""Differences of every arm of a study to its reference: each task and the mean over tasks, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from branchnet.reporting.plots.figures import bare, styled
from branchnet.reporting.plots.palette import INK, MUTED, task_marks
from branchnet.training.studies.paired_differences import Estimate
from branchnet.training.studies.study import Study
from branchnet.utils.visible_text import visible


@dataclass(frozen=True)
class StudyPlot:
    """What the rows show, in percent of the reference's metrics; positive is better.

    Attributes:
        reference: the arm of separate networks.
        tasks: the tasks.
        arms: the other arms, from the top down, with their numbers of trees.
        changes: for each arm and task the difference.
        deltas: for each arm the mean over tasks.
        runs: for each arm Delta of each of its trees, as means over seeds.
    """

    reference: str
    tasks: tuple[str, ...]
    arms: tuple[tuple[str, int], ...]
    changes: tuple[tuple[Estimate, ...], ...]
    deltas: tuple[Estimate, ...]
    runs: tuple[tuple[float, ...], ...]


def study_plot_data(study: Study) -> StudyPlot:
    """Prepare the rows.

    Args:
        study: what was compared.

    Returns:
        what the rows show.
    """
    arms = [arm for arm in study.arms if arm != study.reference]
    found = [study.paired(arm, study.reference) for arm in arms]
    return StudyPlot(
        study.reference,
        study.tasks,
        tuple((arm, study.arms[arm]) for arm in arms),
        tuple(tuple(one.percent[task] for task in study.tasks) for one in found),
        tuple(one.delta for one in found),
        tuple(tuple(study.tree_deltas(arm).tolist()) for arm in arms),
    )


@styled
def draw_study(plot: StudyPlot) -> Figure:
    """Draw a block of rows for each arm: Delta with its interval and the arm's trees, below it every task.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    block = len(plot.tasks) + 2.2
    figure = Figure(figsize=(6.4, 0.7 + 0.19 * block * max(len(plot.arms), 1)))
    axes = figure.add_axes((0, 0, 1, 1))
    marks = task_marks(plot.tasks)
    ticks: list[tuple[float, str]] = []
    for k, (arm, trees) in enumerate(plot.arms):
        top = k * block
        ticks.append((top, visible(arm) + (f" ({trees} trees)" if trees > 1 else "")))
        axes.plot(plot.runs[k], np.full(len(plot.runs[k]), top), "|", color=MUTED, markersize=9)
        _bar(axes, plot.deltas[k], top, INK, "o", 6)
        for row, (task, change) in enumerate(zip(plot.tasks, plot.changes[k], strict=True), 1):
            ticks.append((top + row, visible(task)))
            _bar(axes, change, top + row, marks[task].colour, marks[task].marker, 4)
    bare(axes)
    axes.grid(True, axis="x")
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for k in range(len(plot.arms)):
        axes.get_yticklabels()[k * (len(plot.tasks) + 1)].set_fontweight("bold")
    axes.set_ylim(block * len(plot.arms) - 0.8, -0.9)
    axes.set_xlabel(
        f"change against {visible(plot.reference)}, %, with 95% intervals; bold rows are means over tasks (Δ), their "
        "ticks single trees;\nright is better"
    )
    return figure


def _bar(axes: Axes, estimate: Estimate, place: float, colour: str, marker: str, size: float) -> None:
    if estimate.low == estimate.low:
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=1.6)
    axes.plot([estimate.mean], [place], marker, color=colour, markersize=size)
