"""The Pareto front of trees: clustering cost against size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from branchnet.errors import BranchnetError
from branchnet.reporting.plots.figures import styled
from branchnet.reporting.plots.palette import COLOURS, GRID, INK, MUTED, PAPER
from branchnet.reporting.units import si

if TYPE_CHECKING:
    from branchnet.clustering.search_result import SearchResult

Point = tuple[float, float]
"""A tree in the plane of the plot: size, clustering cost."""


@dataclass(frozen=True)
class FrontPlot:
    """What the plot of a Pareto front shows; every point is (size, clustering cost).

    Attributes:
        front: trees that no other tree beats in both, by size.
        proven: for each of them, whether that is proven.
        chosen, shared, separate: the marked trees, or None.
        random: other trees, for comparison.
        budget: the size that was allowed, or None.
        resource: what size counts.
        objective: what cost counts.
        relative: whether sizes are shares of the separate networks, and not in their unit.
    """

    front: tuple[Point, ...]
    proven: tuple[bool, ...]
    chosen: Point | None = None
    shared: Point | None = None
    separate: Point | None = None
    random: tuple[Point, ...] = ()
    budget: float | None = None
    resource: str = "parameters"
    objective: str = "clustering cost"
    relative: bool = True


def front_plot_data(
    front: Sequence[SearchResult],
    separate_size: float | None = None,
    *,
    chosen: SearchResult | None = None,
    random: Sequence[Point] = (),
    budget: float | None = None,
    resource: str = "parameters",
    objective: str = "clustering cost",
) -> FrontPlot:
    """Prepare the plot of `front`.

    The fully shared and the separate trees are found on the front by their widths.

    Args:
        front: search results, in any order.
        separate_size: size of the N separate networks, in the unit of the results' sizes; by default that of the
            separate tree where it is on the front, otherwise sizes are drawn as they are.
        chosen: the result to mark.
        random: (size, cost) of other trees, in the unit of the results' sizes.
        budget: the size that was allowed, in the same unit.
        resource: what size counts, for the axis.
        objective: what cost counts, for the axis.

    Returns:
        what the plot shows.

    Raises:
        BranchnetError: an empty front.
    """
    if not front:
        raise BranchnetError("the front is empty; expected one or more results of branchnet.pareto_front")
    ordered = sorted(front, key=lambda result: (result.size, result.cost))
    n_tasks = len(ordered[0].tree.tasks)
    alone = [result for result in ordered if min(result.tree.widths) == n_tasks]
    relative = separate_size is not None or bool(alone)
    whole = separate_size if separate_size is not None else alone[0].size if alone else 1.0

    def point(result: SearchResult) -> Point:
        return (result.size / whole, result.cost)

    shared = [point(result) for result in ordered if max(result.tree.widths) == 1]
    separate = [point(result) for result in alone]
    return FrontPlot(
        front=tuple(map(point, ordered)),
        proven=tuple(result.proven for result in ordered),
        chosen=None if chosen is None else point(chosen),
        shared=shared[0] if shared else None,
        separate=separate[0] if separate else None,
        random=tuple((size / whole, cost) for size, cost in random),
        budget=None if budget is None else budget / whole,
        resource=resource,
        objective=objective,
        relative=relative,
    )


@styled
def draw_front(plot: FrontPlot) -> Figure:
    """Draw the front as a staircase of points, hollow where not proven, with the named trees marked.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 3.9))
    axes = figure.add_axes((0.1, 0.13, 0.86, 0.72))
    axes.grid(True)
    if plot.budget is not None:
        axes.axvspan(axes.get_xlim()[0] - 9, plot.budget, color=GRID, alpha=0.35, linewidth=0)
        axes.axvline(plot.budget, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2, label="budget")
    if plot.random:
        axes.plot(*zip(*plot.random, strict=True), "x", color=MUTED, markersize=4.5, label="random trees")
    _draw_points(axes, plot)
    _mark(axes, plot.shared, "s", COLOURS[4], "fully shared", 8)
    _mark(axes, plot.separate, "^", COLOURS[2], "separate", 9)
    _mark(axes, plot.chosen, "*", COLOURS[1], "chosen", 17)
    axes.set_xlabel(f"{plot.resource}, share of the separate networks" if plot.relative else plot.resource)
    axes.set_ylabel(plot.objective)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0) if plot.relative else lambda size, _: si(size))
    _limits(axes, plot)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=6, columnspacing=1.3, handletextpad=0.4)
    return figure


def _draw_points(axes: Axes, plot: FrontPlot) -> None:
    sizes, costs = zip(*plot.front, strict=True)
    axes.step(sizes, costs, where="post", color=COLOURS[0], linewidth=1)
    axes.plot(sizes, costs, "o", color=COLOURS[0], markersize=4, label="Pareto front")
    open_points = [point for point, proven in zip(plot.front, plot.proven, strict=True) if not proven]
    if open_points:
        style: Any = {"markerfacecolor": PAPER, "markeredgecolor": COLOURS[0], "linestyle": "none", "markersize": 4.5}
        axes.plot(*zip(*open_points, strict=True), "o", label="not proven", **style)


def _mark(axes: Axes, point: Point | None, marker: str, colour: str, label: str, size: float) -> None:
    if point is not None:
        edge: Any = {"markeredgecolor": INK, "markeredgewidth": 0.9, "linestyle": "none", "zorder": 5}
        axes.plot(*point, marker=marker, color=colour, markersize=size, label=label, clip_on=False, **edge)


def _limits(axes: Axes, plot: FrontPlot) -> None:
    points = [*plot.front, *plot.random, *(p for p in (plot.chosen, plot.shared, plot.separate) if p)]
    sizes = [x for x, _ in points] + ([plot.budget] if plot.budget is not None else [])
    costs = [y for _, y in points]
    wide, tall = max(sizes) - min(sizes) or 0.1, max(costs) - min(costs) or 1.0
    axes.set_xlim(min(sizes) - 0.04 * wide, max(sizes) + 0.04 * wide)
    axes.set_ylim(min(costs) - 0.06 * tall, max(costs) + 0.08 * tall)
