"""Losses over the steps of training: each step thin, their running mean, and those on held-out samples dashed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from branchnet.errors import BranchnetError
from branchnet.reporting.plots.figures import save_figure, styled
from branchnet.reporting.plots.palette import MUTED, task_marks
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.training import History

_WINDOWS = 25
"""The running mean is over a 25th of the steps: short enough to follow a curve, long enough to smooth batches."""


@dataclass(frozen=True)
class HistoryPlot:
    """What the plot of a training history shows.

    Attributes:
        tasks: task names.
        losses: for each task its loss at every step.
        smoothed: the mean of each loss over the last `window` steps (of fewer at the start).
        window: that number of steps.
        resumed_at: the step at which training was resumed, or None.
        logarithmic: whether losses are drawn on a logarithmic scale: all of them are positive.
        held_out: for each task the steps after which it was measured on held-out samples, and the losses there.
        rate: the peak learning rate, where it is one.
    """

    tasks: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]
    smoothed: tuple[tuple[float, ...], ...]
    window: int
    resumed_at: int | None
    logarithmic: bool
    held_out: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    rate: float | None = None


def history_plot_data(history: History) -> HistoryPlot:
    """Prepare the plot of `history`.

    Args:
        history: what `fit` or `distill` returned.

    Returns:
        what the plot shows.

    Raises:
        BranchnetError: a history without steps.
    """
    steps = max((len(losses) for losses in history.losses.values()), default=0)
    if not steps:
        raise BranchnetError("the history has no losses; expected at least one step of training")
    window = math.ceil(steps / _WINDOWS)
    held_out = []
    for task in history.losses:
        measured = [(one.step, one.losses.get(task, math.nan)) for one in history.measurements]
        points = [(step, loss) for step, loss in measured if not math.isnan(loss)]
        held_out.append((tuple(step for step, _ in points), tuple(loss for _, loss in points)))
    drawn = [loss for losses in history.losses.values() for loss in losses if not math.isnan(loss)]
    return HistoryPlot(
        tasks=tuple(history.losses),
        losses=tuple(tuple(losses) for losses in history.losses.values()),
        smoothed=tuple(_running_mean(losses, window) for losses in history.losses.values()),
        window=window,
        resumed_at=history.resumed_at or None,
        logarithmic=all(loss > 0 for loss in [*drawn, *(loss for _, losses in held_out for loss in losses)]),
        held_out=tuple(held_out),
        rate=history.learning_rate,
    )


def _running_mean(values: tuple[float, ...], window: int) -> tuple[float, ...]:
    """Steps without a loss do not count."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    found = counts[ends] - counts[starts]
    means = np.where(found > 0, (sums[ends] - sums[starts]) / np.maximum(found, 1), np.nan)
    return tuple(means.tolist())


def _known(losses: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses without the steps that have none, so that a line is drawn from each loss to the next."""
    values = np.asarray(losses)
    known = ~np.isnan(values)
    return np.arange(1, len(values) + 1)[known], values[known]


@styled
def draw_history(plot: HistoryPlot) -> Figure:
    """Draw one curve for each task; a dotted line marks where training was resumed.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True)
    marks = task_marks(plot.tasks)
    for task, losses, smoothed in zip(plot.tasks, plot.losses, plot.smoothed, strict=True):
        colour = marks[task].colour
        if plot.window > 1:
            axes.plot(*_known(losses), color=colour, linewidth=0.5, alpha=0.35)
        marker: Any = {"marker": marks[task].marker, "markersize": 4, "markevery": max(1, len(losses) // 8)}
        axes.plot(*_known(smoothed), color=colour, linewidth=1.6, label=visible(task), **marker)
    for task, (at, held_out) in zip(plot.tasks, plot.held_out, strict=False):
        if at:
            axes.plot(at, held_out, color=marks[task].colour, linewidth=1.2, linestyle="--")
    if any(at for at, _ in plot.held_out):
        axes.plot([], [], color=MUTED, linewidth=1.2, linestyle="--", label="held-out samples")
    if plot.resumed_at is not None:
        axes.axvline(plot.resumed_at, color=MUTED, linewidth=0.8, linestyle=":", label="resumed")
    if plot.logarithmic:
        axes.set_yscale("log")
        # Plain numbers: the style prints `$` as it is, for tasks' names, and so cannot set powers of ten.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step" if plot.rate is None else f"step (peak learning rate {plot.rate:g})")
    axes.set_ylabel("loss" if plot.window == 1 else f"loss (thick: mean of {plot.window} steps)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def write_histories(histories: Mapping[str, History], directory: Path) -> None:
    """Write the history of the last phase of a training as `history.csv` and `history.png`, earlier ones as tables.

    Args:
        histories: by phase, in their order; nothing is written where there is none.
        directory: where `history_<phase>.csv` go, too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    *earlier, last = histories or [""]
    for phase in earlier:
        histories[phase].to_csv(directory / f"history_{phase}.csv")
    if last:
        histories[last].to_csv(directory / "history.csv")
        save_figure(draw_history(history_plot_data(histories[last])), directory / "history.png")
