"""Bars of relative performance: the change of every task in every network variant against the single-task networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from branchnet.reporting.plots.figures import bare, styled
from branchnet.reporting.plots.palette import MUTED, series_marks
from branchnet.reporting.units import signed, significant
from branchnet.training.judging.performance import absolute_changes, mean_of_defined, relative_changes
from branchnet.utils.visible_text import visible

_NUMBERED = 48


@dataclass(frozen=True)
class MetricPlot:
    """What the bars show, in percent; positive is better than single-task.

    Attributes:
        tasks: task names, from the top down.
        variants: names of the networks compared.
        deltas: for each variant, the relative change of each task.
        points: for each variant, the change of each task in its metric's own unit.
        means: for each variant, the multi-task performance Delta, the mean over tasks.
    """

    tasks: tuple[str, ...]
    variants: tuple[str, ...]
    deltas: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]


def metric_plot_data(
    single: Mapping[str, float], variants: Mapping[str, Mapping[str, float]], lower_is_better: Mapping[str, bool]
) -> MetricPlot:
    """Prepare the bars.

    Args:
        single: metric of each task's single-task network.
        variants: for each network compared, the metric of each task.
        lower_is_better: for each task, whether a smaller metric is better.

    Returns:
        what the bars show.

    Raises:
        TrainingError: as `relative_changes`.
    """
    changes = [relative_changes(single, metrics, lower_is_better) for metrics in variants.values()]
    return MetricPlot(
        tasks=tuple(single),
        variants=tuple(variants),
        deltas=tuple(tuple(change.values()) for change in changes),
        points=tuple(
            tuple(absolute_changes(single, metrics, lower_is_better).values()) for metrics in variants.values()
        ),
        means=tuple(mean_of_defined(change) for change in changes),
    )


@styled
def draw_metrics(plot: MetricPlot) -> Figure:
    """Draw horizontal bars, a group for each task and one for the mean over all tasks at the top.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    n_variants, rows = len(plot.variants), len(plot.tasks) + 1
    bar = 0.17 if rows <= 13 else 0.09
    row_height = bar * n_variants + 0.14
    figure = Figure(figsize=(6.4, 0.6 + row_height * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    positions = [0.0, *(row + 1.35 for row in range(len(plot.tasks)))]
    step = bar / row_height
    numbered = n_variants * rows <= _NUMBERED
    for k, (name, mark) in enumerate(series_marks(plot.variants).items()):
        offset = (k - (n_variants - 1) / 2) * step
        values = [plot.means[k], *plot.deltas[k]]
        places = [position + offset for position in positions]
        bars = axes.barh(places, values, 0.86 * step, color=mark.colour, label=visible(name))
        if numbered:
            beside = ["", *(f" ({significant(value)})" for value in plot.points[k])]
            labels = [signed(value, 1) + points for value, points in zip(values, beside, strict=True)]
            axes.bar_label(bars, labels, padding=3, fontsize=7)
    axes.set_yticks(positions, ["mean (Δ)", *map(visible, plot.tasks)])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.axhline(0.68, color=MUTED, linewidth=0.6)
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    _style(axes, max((abs(v) for row in plot.deltas for v in row if v == v), default=1.0), numbered)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1.3)
    return figure


def _style(axes: Axes, largest: float, numbered: bool) -> None:
    bare(axes)
    axes.grid(True, axis="x")
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_xlabel("change against the single-task networks, % (in the metric's unit); right is better")
    low, high = axes.get_xlim()
    pad = (0.18 if numbered else 0.03) * max(high - low, 0.1 * largest)
    axes.set_xlim(low - pad if low < 0 else low, high + pad if high > 0 else high)
    axes.tick_params(axis="x", colors=MUTED)
