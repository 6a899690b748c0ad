"""Affinity heat maps: one panel for each location, all on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from branchnet.reporting.plots.figures import bare, shorten, styled
from branchnet.reporting.plots.palette import BLACK, WHITE, text_on
from branchnet.reporting.plots.tree_plot import leaf_order

if TYPE_CHECKING:
    from branchnet.affinity.tensor import Affinity
    from branchnet.clustering.trees.tree import Tree

_ANNOTATED = 12
"""Tasks up to which a value of 7.5 points fits into its cell; with its error below, up to `_WITH_ERRORS`."""
_WITH_ERRORS = 8
_SMALL_PRINT = 24
"""Tasks up to which names are set in 8 points, above in 7."""
_WIDEST = 12.6
"""Inches: panels that do not fit next to each other go into another row."""
_NORMAL_95 = 1.96
"""Half a 95 % interval in standard errors of a normal distribution."""


@dataclass(frozen=True, eq=False)
class AffinityPlot:
    """What the heat maps show.

    Attributes:
        tasks: row and column names, in the order drawn.
        locations: panel names.
        values: (D, N, N); NaN where nothing is drawn (the diagonal of measures that are 1 there).
        standard_errors: (D, N, N) or None.
        measure: what the numbers are.
        low, high: ends of the shared colour scale.
        diverging: whether the scale is centred on 0 (measures where the sign says harm or help).
        clusters: for each location the (first, last) rows of each cluster to outline; empty without a tree.
    """

    tasks: tuple[str, ...]
    locations: tuple[str, ...]
    values: npt.NDArray[np.float64]
    standard_errors: npt.NDArray[np.float64] | None
    measure: str
    low: float
    high: float
    diverging: bool
    clusters: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def shows_errors(self) -> bool:
        """Whether there are standard errors, and room to write them."""
        return self.standard_errors is not None and len(self.tasks) <= _WITH_ERRORS

    @property
    def unclear(self) -> npt.NDArray[np.bool_] | None:
        """Cells whose 95 % interval holds the mean of their location, (D, N, N); None without standard errors."""
        if self.standard_errors is None:
            return None
        distance = np.abs(self.values - np.nanmean(self.values, axis=(1, 2), keepdims=True))
        return np.asarray(distance <= _NORMAL_95 * self.standard_errors)


def affinity_plot_data(affinity: Affinity, *, tree: Tree | None = None) -> AffinityPlot:
    """Prepare the heat maps of `affinity`.

    With a tree of the same tasks and depth, tasks are ordered as its leaves and each cluster of two or more tasks is
    outlined at its location; without, similar tasks are next to each other. A diagonal of ones is left out, so that the
    scale serves the other cells.

    Args:
        affinity: values (D, N, N).
        tree: over the same tasks and locations.

    Returns:
        what the heat maps show.
    """
    tasks = leaf_order(tree) if tree else _linkage_order(affinity)
    order = [affinity.tasks.index(task) for task in tasks]
    values = affinity.values[:, order][:, :, order].copy()
    errors = affinity.standard_errors
    diagonal = np.arange(len(tasks))
    if np.allclose(values[:, diagonal, diagonal], 1.0):
        values[:, diagonal, diagonal] = np.nan
    shown = values[np.isfinite(values)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    diverging = affinity.directed and low < 0 < high
    if diverging:
        low, high = -max(-low, high), max(-low, high)
    return AffinityPlot(
        tasks=tasks,
        locations=tuple(affinity.locations),
        values=values,
        standard_errors=None if errors is None else np.asarray(errors)[:, order][:, :, order],
        measure=affinity.measure,
        low=low,
        high=high if high > low else low + 1e-9,
        diverging=diverging,
        clusters=_outlines(tree, tasks) if tree else ((),) * len(affinity.locations),
    )


def _linkage_order(affinity: Affinity) -> tuple[str, ...]:
    """The leaves of a dendrogram (average linkage, of the mean over locations and directions), neighbours most similar.

    One order for all locations, so that a row is the same task in every panel.
    """
    if len(affinity.tasks) < 3:
        return tuple(affinity.tasks)
    mean = affinity.values.mean(axis=0)
    distances = mean.max() - (mean + mean.T) / 2
    np.fill_diagonal(distances, 0.0)
    joined = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    return tuple(affinity.tasks[index] for index in leaves_list(joined))


@styled
def draw_affinity(plot: AffinityPlot) -> Figure:
    """Draw the heat maps, with values in the cells where there are at most 12 tasks (8 with standard errors).

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    depth, n_tasks = len(plot.locations), len(plot.tasks)
    cell = 0.46 if n_tasks <= _ANNOTATED else 0.17 if n_tasks <= _SMALL_PRINT else 0.125
    side = max(cell * n_tasks, 1.5)
    letter = 0.075 if n_tasks <= _SMALL_PRINT else 0.066
    label = letter * max(len(shorten(task, 24)) for task in plot.tasks) + 0.15
    columns = _columns(depth, int((_WIDEST - label) / (side + 0.35)))
    rows = math.ceil(depth / columns)
    width, height = columns * (side + 0.35) + label + 0.6, rows * (side + 0.45) + label
    figure = Figure(figsize=(width, height))
    image = None
    for d in range(depth):
        row, column = divmod(d, columns)
        left = (label + column * (side + 0.35)) / width
        bottom = (label + (rows - 1 - row) * (side + 0.45)) / height
        axes = figure.add_axes((left, bottom, side / width, side / height))
        below = d + columns < depth
        image = _draw_panel(axes, plot, d, rows_named=column == 0, columns_named=not below)
    bar_left = (label + columns * (side + 0.35) - 0.15) / width
    bar_height = min(side, 2.6) / height
    top = (label + (rows - 1) * (side + 0.45) + side) / height
    bar = figure.add_axes((bar_left, top - bar_height, 0.13 / width, bar_height))
    assert image is not None
    figure.colorbar(image, cax=bar, label=_scale_label(plot)).outline.set_visible(False)
    return figure


def _columns(panels: int, most: int) -> int:
    """As few columns as the least number of rows allows, so that the last row is not nearly empty."""
    rows = math.ceil(panels / max(most, 1))
    return math.ceil(panels / rows)


def _draw_panel(axes: Axes, plot: AffinityPlot, d: int, *, rows_named: bool, columns_named: bool) -> AxesImage:
    n_tasks = len(plot.tasks)
    colours = colormaps["PuOr_r" if plot.diverging else "cividis"].with_extremes(bad=(0.5, 0.5, 0.5, 0.18))
    scale = Normalize(plot.low, plot.high)
    image = axes.imshow(plot.values[d], cmap=colours, norm=scale, interpolation="none")
    axes.set_title(shorten(plot.locations[d], max(10, int(n_tasks * (4 if n_tasks <= _ANNOTATED else 2)))), fontsize=10)
    names = [shorten(task, 24) for task in plot.tasks]
    axes.set_xticks(range(n_tasks), names if columns_named else [""] * n_tasks, rotation=90)
    axes.set_yticks(range(n_tasks), names if rows_named else [""] * n_tasks)
    bare(axes)
    if n_tasks > _SMALL_PRINT:
        axes.tick_params(labelsize=7)
    if n_tasks <= _ANNOTATED:
        _annotate(axes, plot, d, image)
    if plot.unclear is not None and not plot.shows_errors:
        _mark_unclear(axes, plot, d, image)
    for first, last in plot.clusters[d]:
        size = last - first + 1
        for colour, line in ((BLACK, 3.2), (WHITE, 1.4)):
            axes.add_patch(
                Rectangle((first - 0.5, first - 0.5), size, size, fill=False, edgecolor=colour, linewidth=line)
            )
    return image


def _annotate(axes: Axes, plot: AffinityPlot, d: int, image: AxesImage) -> None:
    with_errors = plot.shows_errors
    for i, j in np.argwhere(np.isfinite(plot.values[d])):
        value = plot.values[d, i, j]
        colour = text_on(np.asarray(image.cmap(image.norm(value))).tolist())
        axes.text(j, i - 0.12 * with_errors, _short(value), ha="center", va="center", fontsize=7.5, color=colour)
        if plot.standard_errors is not None and with_errors:
            error = f"±{_NORMAL_95 * plot.standard_errors[d, i, j]:.2f}"
            axes.text(j, i + 0.24, error, ha="center", va="center", fontsize=5.5, color=colour)


def _mark_unclear(axes: Axes, plot: AffinityPlot, d: int, image: AxesImage) -> None:
    """A dot, in the corner where the value is written, in every cell that the interval leaves open."""
    assert plot.unclear is not None
    cells = np.argwhere(plot.unclear[d])
    if not len(cells):
        return
    corner = 0.32 if len(plot.tasks) <= _ANNOTATED else 0.0
    colours = [text_on(np.asarray(image.cmap(image.norm(plot.values[d, i, j]))).tolist()) for i, j in cells]
    axes.scatter(cells[:, 1] + corner, cells[:, 0] + corner, s=1.6, c=colours, linewidths=0)


def _short(value: float) -> str:
    """Two decimals without the leading zero, and no negative zero."""
    text = f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def _scale_label(plot: AffinityPlot) -> str:
    label = measure_label(plot.measure)
    return f"{label}, row helps column" if plot.diverging else label


def measure_label(measure: str) -> str:
    """Return what the axis of an affinity is called."""
    return {"rsa": "RSA (Spearman)", "cka": "CKA"}.get(measure, measure)


def _outlines(tree: Tree, tasks: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], ...]:
    row = {task: i for i, task in enumerate(tasks)}
    return tuple(
        tuple(sorted((min(map(row.__getitem__, c)), max(map(row.__getitem__, c))) for c in clusters if len(c) > 1))
        for clusters in tree.partitions
    )
