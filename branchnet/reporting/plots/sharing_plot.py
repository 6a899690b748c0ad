"""Two fronts on one pair of axes: whole networks for groups of tasks, and branched trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from branchnet.reporting.plots.figures import styled
from branchnet.reporting.plots.palette import series_marks
from branchnet.reporting.units import si

if TYPE_CHECKING:
    from branchnet.clustering.grouping.sharing_comparison import SharingComparison

GROUPS, TREES = "groups of whole networks", "branched trees"


@styled
def draw_sharing(compared: SharingComparison) -> Figure:
    """Draw clustering cost against size of both fronts.

    Args:
        compared: what `branchnet.clustering.compare_sharing` returned.

    Returns:
        a matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    draw_sharing_on(figure.add_subplot(), compared)
    return figure


def draw_sharing_on(axes: Axes, compared: SharingComparison) -> None:
    """Draw both fronts on the axes of a larger figure.

    Args:
        axes: where to draw.
        compared: what `branchnet.clustering.compare_sharing` returned.
    """
    marks = series_marks((GROUPS, TREES))
    for points, label in ((compared.groups, GROUPS), (compared.trees, TREES)):
        sizes, costs = [point.size for point in points], [point.cost for point in points]
        style: Any = {"marker": marks[label].marker, "color": marks[label].colour}
        # Between two points the smaller tree is the best that fits: the front is a staircase.
        axes.step(sizes, costs, where="post", markersize=3, label=label, **style)
    axes.xaxis.set_major_formatter(lambda size, _: si(size))
    axes.set_xlabel(compared.unit)
    axes.set_ylabel(f"clustering cost ({compared.objective})")
    axes.legend()
