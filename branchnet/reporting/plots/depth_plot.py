"""Affinity against depth: one line for each pair of tasks, from the first location to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from branchnet.reporting.plots.affinity_plot import measure_label
from branchnet.reporting.plots.figures import shorten, styled
from branchnet.reporting.plots.palette import INK, MUTED, Mark, task_marks

if TYPE_CHECKING:
    from branchnet.affinity.tensor import Affinity

_NAMED_PAIRS = 15
"""More lines cannot be told apart by their colours: of more, the five highest and the five lowest are named."""
_EXTREMES = 5


@dataclass(frozen=True, eq=False)
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


def depth_lines(affinity: Affinity) -> list[DepthLine]:
    """Return one line for each pair, or for each ordered pair where the affinity is directed.

    Args:
        affinity: values (D, N, N).

    Returns:
        the lines, the highest at the last location first.
    """
    lines = []
    for i, j in np.ndindex(*affinity.values.shape[1:]):
        if i < j or (affinity.directed and i != j):
            errors = None if affinity.standard_errors is None else affinity.standard_errors[:, i, j]
            lines.append(DepthLine((affinity.tasks[i], affinity.tasks[j]), affinity.values[:, i, j], errors))
    return sorted(lines, key=lambda line: -float(line.values[-1]))


@styled
def plot_depth(affinity: Affinity) -> Figure:
    """Draw affinity against depth; with many pairs, the extremes are named and the others drawn thin.

    Args:
        affinity: values (D, N, N); standard errors become bands, a reliability a dashed line.

    Returns:
        a matplotlib figure.
    """
    lines = depth_lines(affinity)
    places = np.arange(len(affinity.locations))
    named = _named_lines(len(lines))
    arrow = " → " if affinity.directed else " / "
    names = {number: arrow.join(lines[number].tasks) for number in named}
    marks = task_marks(list(names.values()))
    legend = 0.07 * max(map(len, names.values()), default=0)
    figure = Figure(figsize=(max(4.5, 0.7 * len(places) + 1.0) + max(1.0, legend), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, line in enumerate(lines):
        if number in names:
            _draw_named(axes, places, line, names[number], marks[names[number]])
        else:
            axes.plot(places, line.values, color=MUTED, linewidth=0.5, alpha=0.35, zorder=1)
    _draw_ceiling(axes, affinity, places)
    many = len(places) > 4
    labels = [shorten(name) for name in affinity.locations]
    axes.set_xticks(places, labels, rotation=35 if many else 0, ha="right" if many else "center")
    axes.set_xlabel("location, from input to output")
    axes.set_ylabel(measure_label(affinity.measure))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_named(axes: Axes, places: npt.NDArray[np.intp], line: DepthLine, name: str, mark: Mark) -> None:
    axes.plot(places, line.values, marker=mark.marker, markersize=4, color=mark.colour, label=name, zorder=3)
    if line.errors is not None:
        low, high = line.values - line.errors, line.values + line.errors
        axes.fill_between(places, low, high, color=mark.colour, alpha=0.15, linewidth=0)


def _named_lines(count: int) -> list[int]:
    if count <= _NAMED_PAIRS:
        return list(range(count))
    return [*range(_EXTREMES), *range(count - _EXTREMES, count)]


def _draw_ceiling(axes: Axes, affinity: Affinity, places: npt.NDArray[np.intp]) -> None:
    """The affinity of a task with itself trained from another seed: what no pair can be expected to exceed."""
    if affinity.reliability is not None:
        ceiling = affinity.reliability.ceiling.mean(axis=1)
        axes.plot(places, ceiling, color=INK, linestyle="--", linewidth=1.2, label="same task, other seed", zorder=4)
