"""Proposed trees as points: what the stitching losses predict, against what was measured before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from branchnet.errors import BranchnetError
from branchnet.reporting.measured_tree import MeasuredTree
from branchnet.reporting.plots.figures import styled
from branchnet.reporting.plots.palette import GRID, INK, MUTED, PAPER, series_marks
from branchnet.utils.visible_text import visible

CONSTANT_LOSS = 1.0
"""The loss of a constant predictor."""
LARGEST_SHOWN = 2.0
"""Trees that lose more stand at the edge: one of them would push all others together."""


@dataclass(frozen=True)
class MeasuredPlot:
    """What the plot of measured trees shows; every point is (predicted, measured), 0 as the own networks.

    Attributes:
        series: who proposed, e.g. `RSA (mean-pair)`, each with the points of its trees, in the order of proposals.
        chosen: the point of the tree that does best.
        proposer: who proposed that tree.
        agreement: the share of pairs of trees that prediction and measurement put into one order; NaN where no two
            trees differ in both.
    """

    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    chosen: tuple[float, float]
    proposer: str
    agreement: float


def measured_plot_data(trees: Sequence[MeasuredTree]) -> MeasuredPlot:
    """Prepare the plot of trees that were measured.

    Args:
        trees: what was measured, as `branchnet.RunResult.measured` holds it.

    Returns:
        what the plot shows.

    Raises:
        BranchnetError: no tree with a prediction.
    """
    known = [tree for tree in trees if tree.predicted is not None]
    if not known:
        raise BranchnetError("no tree has a predicted loss; expected those of a run with measure='auto'")
    best = min(known, key=lambda tree: (tree.mean, tree.size))
    series: dict[str, list[tuple[float, float]]] = {}
    for tree in known:
        series.setdefault(tree.by, []).append(_point(tree))
    return MeasuredPlot(
        series=tuple((name, tuple(points)) for name, points in series.items()),
        chosen=_point(best),
        proposer=best.by,
        agreement=_agreement([_point(tree) for tree in known]),
    )


def _point(tree: MeasuredTree) -> tuple[float, float]:
    assert tree.predicted is not None
    return tree.predicted, tree.mean


def _agreement(points: Sequence[tuple[float, float]]) -> float:
    """Of the pairs of points that differ in both, the share in which both differ in one direction."""
    products = [(one[0] - other[0]) * (one[1] - other[1]) for k, one in enumerate(points) for other in points[:k]]
    counted = [product for product in products if product]
    return sum(product > 0 for product in counted) / len(counted) if counted else float("nan")


@styled
def draw_measured(plot: MeasuredPlot) -> Figure:
    """Draw a point for each tree; the chosen one is ringed, a dashed line is where predictions come true.

    Where trees coincide, the first proposer's mark lies on top and is the smallest, so that all are seen.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(7.4, 4.1), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True)
    values = [min(value, LARGEST_SHOWN) for _, points in plot.series for point in points for value in point]
    low, high = min(values), max(values)
    pad = 0.08 * (high - low or 0.1)
    ends = (max(0.0, low - pad), high + pad)
    axes.plot(ends, ends, color=MUTED, linestyle=(0, (5, 3)), linewidth=1, label="predicted = measured")
    if high > CONSTANT_LOSS:
        axes.axhspan(CONSTANT_LOSS, ends[1], color=GRID, alpha=0.35, linewidth=0, label="worse than a constant")
    marks = series_marks([name for name, _ in plot.series])
    for number, (name, points) in enumerate(plot.series):
        mark: Any = {
            "color": marks[name].colour,
            "marker": marks[name].marker,
            "markersize": 5 + 0.5 * min(number, 8),
            "markeredgecolor": PAPER,
            "markeredgewidth": 0.5,
            "linestyle": "none",
            "clip_on": False,
            "zorder": 3 - number / len(plot.series),
        }
        axes.plot(*_clipped(points), label=visible(name), **mark)
    ring: Any = {"marker": "o", "markersize": 15, "markerfacecolor": "none", "linestyle": "none", "clip_on": False}
    axes.plot(*_clipped([plot.chosen]), label="chosen", markeredgecolor=INK, markeredgewidth=1.3, zorder=4, **ring)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    if any(value > LARGEST_SHOWN for _, points in plot.series for point in points for value in point):
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [tick for tick in axis.get_ticklocs() if ends[0] <= tick < 0.95 * LARGEST_SHOWN]
            axis.set_ticks([*ticks, LARGEST_SHOWN], [*(f"{tick:g}" for tick in ticks), f"≥ {LARGEST_SHOWN:g}"])
    axes.set_xlabel("predicted loss (stitching losses at the last change of donor)")
    axes.set_ylabel("measured loss before training")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _clipped(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    predicted, measured = zip(*points, strict=True)
    return [min(value, LARGEST_SHOWN) for value in predicted], [min(value, LARGEST_SHOWN) for value in measured]
