"""Pictures of an affinity: a heat map per location with a dendrogram, and affinity against depth.

Each picture is data, which can be tested, and a renderer, which only draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from branchnet.affinity.tensor import Affinity

_COLUMNS = 4
_LABELLED_PAIRS = 15
_PANEL_WITH_DENDROGRAM = {"height_ratios": [1, 5], "hspace": 0.02}


@dataclass(frozen=True)
class HeatMap:
    """One location's affinities with alike tasks side by side.

    Attributes:
        location: its name.
        tasks: N names in display order.
        values: float64, (N, N), in display order.
        branches: the dendrogram's lines, x from 0 to N with tasks at 0.5, 1.5, ...; y from 0 to 1.
    """

    location: str
    tasks: tuple[str, ...]
    values: npt.NDArray[np.float64]
    branches: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


@dataclass(frozen=True)
class DepthLine:
    """The affinity of one pair at every location.

    Attributes:
        tasks: the pair.
        values: float64, (D,).
        errors: standard errors, (D,), or None.
    """

    tasks: tuple[str, str]
    values: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64] | None


def heat_maps(affinity: Affinity) -> list[HeatMap]:
    """One heat map per location; tasks are ordered by average-linkage clustering of its mean over both directions."""
    return [_heat_map(affinity, location) for location in range(len(affinity.locations))]


def depth_lines(affinity: Affinity) -> list[DepthLine]:
    """One line per pair, or per ordered pair where the affinity is directed; highest at the last location first."""
    lines = []
    for i, j in np.ndindex(*affinity.values.shape[1:]):
        if i < j or (affinity.directed and i != j):
            errors = None if affinity.standard_errors is None else affinity.standard_errors[:, i, j]
            lines.append(DepthLine((affinity.tasks[i], affinity.tasks[j]), affinity.values[:, i, j], errors))
    return sorted(lines, key=lambda line: -float(line.values[-1]))


def plot_heatmaps(affinity: Affinity) -> Figure:
    """A heat map for every location, its tasks ordered and joined by a dendrogram."""
    maps = heat_maps(affinity)
    tasks = len(affinity.tasks)
    columns = min(len(maps), _COLUMNS if tasks <= 15 else 2)
    rows = ceil(len(maps) / columns)
    side = max(2.8, 0.9 + 0.19 * tasks)
    width = columns * (side + 1.0)
    figure = Figure(figsize=(width + 1.0, rows * (side * 1.2 + 0.9)), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=[width, 1.0])
    left, right = sides
    low, high = _colour_range(affinity)
    panels = left.subfigures(rows, columns, squeeze=False)
    images = [_draw_map(panel, one, low, high) for panel, one in zip(panels.flat, maps, strict=False)]
    beside = right.add_axes((0.1, 0.25, 0.2, 0.5))
    figure.colorbar(images[0], cax=beside, label=_label(affinity))
    return figure


def plot_depth(affinity: Affinity) -> Figure:
    """Affinity against depth, one line per pair; with many pairs, the extremes are named and the rest drawn thin."""
    lines = depth_lines(affinity)
    places = np.arange(len(affinity.locations))
    named = _named_lines(len(lines))
    arrow = " → " if affinity.directed else " / "
    legend = 0.07 * max((len(arrow.join(lines[number].tasks)) for number in named), default=0)
    figure = Figure(figsize=(max(4.5, 0.7 * len(places) + 1.0) + max(1.0, legend), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, line in enumerate(lines):
        if number in named:
            colour = f"C{len(axes.get_legend_handles_labels()[0]) % 10}"
            axes.plot(
                places, line.values, marker="o", markersize=4, color=colour, label=arrow.join(line.tasks), zorder=3
            )
            if line.errors is not None:
                low, high = line.values - line.errors, line.values + line.errors
                axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.plot(places, line.values, color="0.6", linewidth=0.5, alpha=0.35, zorder=1)
    _draw_ceiling(axes, affinity, places)
    axes.set_xticks(
        places, affinity.locations, rotation=35 if len(places) > 4 else 0, ha="right" if len(places) > 4 else "center"
    )
    axes.set_xlabel("location, from input to output")
    axes.set_ylabel(_label(affinity))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return figure


def _heat_map(affinity: Affinity, location: int) -> HeatMap:
    values = affinity.values[location]
    if len(values) < 2:
        return HeatMap(affinity.locations[location], tuple(affinity.tasks), values, ())
    both = (values + values.T) / 2
    distances = both.max() - both
    np.fill_diagonal(distances, 0.0)
    tree = dendrogram(linkage(squareform(distances, checks=False), "average"), no_plot=True)
    order = tree["leaves"]
    tallest = max(max(heights) for heights in tree["dcoord"]) or 1.0
    branches = tuple(
        (tuple(x / 10 for x in across), tuple(y / tallest for y in up))
        for across, up in zip(tree["icoord"], tree["dcoord"], strict=True)
    )
    names = tuple(affinity.tasks[index] for index in order)
    return HeatMap(affinity.locations[location], names, values[np.ix_(order, order)], branches)


def _draw_map(panel: Any, one: HeatMap, low: float, high: float) -> Any:
    top, axes = panel.subplots(2, 1, sharex=True, gridspec_kw=_PANEL_WITH_DENDROGRAM)
    count = len(one.tasks)
    for across, up in one.branches:
        top.plot(across, up, color="0.35", linewidth=0.9)
    top.set_axis_off()
    top.set_title(one.location, fontsize=10)
    image = axes.imshow(one.values, vmin=low, vmax=high, cmap="viridis", extent=(0, count, count, 0), aspect="auto")
    size = 9 if count <= 10 else 8 if count <= 25 else 7
    middles = np.arange(count) + 0.5
    axes.set_yticks(middles, one.tasks, fontsize=size)
    axes.set_xticks(middles, one.tasks, rotation=90, fontsize=size)
    axes.tick_params(length=0)
    if count <= 8:
        _write_values(axes, one.values, low, high)
    return image


def _write_values(axes: Axes, values: npt.NDArray[np.float64], low: float, high: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        dark = value < (low + high) / 2
        axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")


def _colour_range(affinity: Affinity) -> tuple[float, float]:
    """The range of the values of different tasks, so that ones on the diagonal do not hide it."""
    count = len(affinity.tasks)
    others = affinity.values[:, ~np.eye(count, dtype=bool)] if count > 1 else affinity.values
    low, high = float(others.min()), float(others.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _named_lines(count: int) -> set[int]:
    """All lines where they can be told apart, else the first and last five."""
    return set(range(count)) if count <= _LABELLED_PAIRS else {*range(5), *range(count - 5, count)}


def _draw_ceiling(axes: Axes, affinity: Affinity, places: npt.NDArray[np.intp]) -> None:
    if affinity.reliability is not None:
        ceiling = affinity.reliability.ceiling.mean(axis=1)
        axes.plot(places, ceiling, color="k", linestyle="--", linewidth=1.2, label="same task, other seed", zorder=4)


def _label(affinity: Affinity) -> str:
    return f"affinity ({affinity.measure})"
