"""Latencies: bars of networks with the ratio to a baseline, and curves of a table's stages by number of copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from branchnet.inference.latency import Latency
from branchnet.reporting.plots.figures import bare, shorten, styled
from branchnet.reporting.plots.palette import COLOURS, INK, MUTED, SHARED, series_marks
from branchnet.reporting.units import milliseconds
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.inference.latency_tables import LatencyTable


@dataclass(frozen=True)
class LatencyPlot:
    """What the bars show, in seconds.

    Attributes:
        names: what was measured, from the top down.
        medians: median latency of each.
        low, high: 10th and 90th percentile of each.
        baseline: the name that ratios are relative to, or None.
        ratios: the baseline's median over each median (2 = twice as fast), empty without a baseline.
    """

    names: tuple[str, ...]
    medians: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    baseline: str | None = None
    ratios: tuple[float, ...] = ()


def latency_plot_data(latencies: Mapping[str, Latency], *, baseline: str | None = None) -> LatencyPlot:
    """Prepare the bars of `latencies`.

    Args:
        latencies: measurements by name.
        baseline: the name that ratios are relative to, or None.

    Returns:
        what the bars show.
    """
    medians = tuple(latency.median for latency in latencies.values())
    return LatencyPlot(
        names=tuple(latencies),
        medians=medians,
        low=tuple(latency.low for latency in latencies.values()),
        high=tuple(latency.high for latency in latencies.values()),
        baseline=baseline,
        ratios=() if baseline is None else tuple(latencies[baseline].median / median for median in medians),
    )


@styled
def draw_latency(plot: LatencyPlot) -> Figure:
    """Draw one horizontal bar for each measurement, a line from the 10th to the 90th percentile, and the ratios.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    rows = len(plot.names)
    figure = Figure(figsize=(6.4, 0.6 + 0.34 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    values = [1e3 * median for median in plot.medians]
    axes.barh(range(rows), values, 0.62, color=[SHARED if n == plot.baseline else COLOURS[0] for n in plot.names])
    axes.hlines(range(rows), [1e3 * v for v in plot.low], [1e3 * v for v in plot.high], color=INK, linewidth=1.6)
    for row, median in enumerate(plot.medians):
        text = milliseconds(median)
        if plot.ratios and plot.names[row] != plot.baseline:
            text += f"  ({plot.ratios[row]:.2f} \N{MULTIPLICATION SIGN} as fast)"
        end = 1e3 * max(median, plot.high[row])
        axes.annotate(text, (end, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(rows), [visible(name) for name in plot.names])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 1.45 * max((*values, *(1e3 * v for v in plot.high)), default=1.0))
    bare(axes)
    axes.grid(True, axis="x")
    axes.set_xlabel("milliseconds for one call (median; line: 10th to 90th percentile)")
    axes.tick_params(axis="x", colors=MUTED)
    return figure


@styled
def draw_latency_table(table: LatencyTable) -> Figure:
    """Draw milliseconds against the number of copies: a line for each stage, dashed where its copies are fused.

    Args:
        table: what `branchnet.latency_table` returned.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True)
    marks = series_marks(table.locations)
    for name, apart, together in zip(table.locations, table.unfused, table.fused, strict=True):
        colour, marker = marks[name].colour, marks[name].marker
        values = [1e3 * latency.median for latency in apart]
        axes.plot(table.widths, values, color=colour, marker=marker, markersize=4, label=shorten(name, 24))
        fused = [(width, 1e3 * t.median) for width, t in zip(table.widths, together, strict=True) if t is not None]
        if fused:
            axes.plot(*zip(*fused, strict=True), color=colour, marker=marker, markersize=4, linestyle="--")
    if any(latency is not None for row in table.fused for latency in row):
        axes.plot([], [], color=INK, linestyle="--", label="as one fused computation")
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("copies of the stage")
    axes.set_ylabel("milliseconds (median)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="stage ends at")
    return figure
