"""Trees of a front over two resources: how much of each they need, and by colour what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from branchnet.clustering.search_result import SearchResult
from branchnet.errors import BranchnetError
from branchnet.reporting.plots.figures import bare, styled
from branchnet.reporting.plots.palette import COLOURS, INK, MUTED
from branchnet.reporting.units import si

NAMES = {"params": "parameters", "flops": "multiply-adds", "latency": "milliseconds"}


@dataclass(frozen=True)
class SurfacePlot:
    """What the points show.

    Attributes:
        units: of the two resources.
        sizes: (points, 2).
        costs: of each point.
        chosen: the number of the point to mark, or None.
        limits: of the chosen tree's budgets; infinite where there are none.
        objective: what cost counts.
    """

    units: tuple[str, str]
    sizes: tuple[tuple[float, float], ...]
    costs: tuple[float, ...]
    chosen: tuple[float, float] | None
    limits: tuple[float, float]
    objective: str


def surface_plot_data(front: Sequence[SearchResult], chosen: SearchResult | None = None) -> SurfacePlot:
    """Prepare the points.

    Args:
        front: results with sizes in two units, as `pareto_front(unit=("params", "flops"))` returns them.
        chosen: the result to mark.

    Returns:
        what the points show.

    Raises:
        BranchnetError: results with sizes in another number of units.
    """
    units = {tuple(one.unit for one in result.resources) for result in front}
    if len(units) != 1 or len(next(iter(units))) != 2:
        raise BranchnetError(f"the front has sizes in {sorted(units)}; expected two units, the same in all results")
    first, second = next(iter(units))
    marked = None if chosen is None else (chosen.resources[0].size, chosen.resources[1].size)
    limits = (np.inf, np.inf) if chosen is None else (chosen.resources[0].limit, chosen.resources[1].limit)
    return SurfacePlot(
        (first, second),
        tuple((one.resources[0].size, one.resources[1].size) for one in front),
        tuple(one.cost for one in front),
        marked,
        (float(limits[0]), float(limits[1])),
        f"clustering cost ({front[0].objective})",
    )


@styled
def draw_surface(plot: SurfacePlot) -> Figure:
    """Draw a point for each tree of the front, with the budgets as lines.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.add_axes((0.12, 0.13, 0.72, 0.82))
    axes.grid(True)
    across, up = np.array(plot.sizes).T
    points = axes.scatter(across, up, c=plot.costs, cmap="cividis", s=30, linewidths=0.4, edgecolors=MUTED, zorder=3)
    bar = figure.colorbar(points, cax=figure.add_axes((0.87, 0.13, 0.03, 0.82)))
    bar.set_label(plot.objective)
    for draw, limit in zip((axes.axvline, axes.axhline), plot.limits, strict=True):
        if np.isfinite(limit):
            draw(limit, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2)
    if plot.chosen is not None:
        axes.plot(*plot.chosen, "*", color=COLOURS[1], markeredgecolor=INK, markersize=15, label="chosen", zorder=4)
        axes.legend(loc="lower right")
    axes.set_xlabel(NAMES[plot.units[0]])
    axes.set_ylabel(NAMES[plot.units[1]])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda size, _: si(size)))
    bare(axes)
    return figure
