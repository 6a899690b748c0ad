"""Prediction samples: images across, and for each task its truth and what networks predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from branchnet.errors import BranchnetError
from branchnet.reporting.plots.figures import shorten, styled
from branchnet.reporting.plots.palette import COLOURS, INK, MUTED, class_palette
from branchnet.utils.visible_text import visible

Kind = Literal["classes", "depth", "normals", "grey", "label"]
"""How outputs are shown: class indices by palette, depth by colour map, unit vectors as RGB, grey, or as text."""

_MASKED = 0.5
_LONGEST = 12


@dataclass(frozen=True, eq=False)
class TaskSamples:
    """Truth and predictions of one task for S images.

    Attributes:
        task: its name.
        kind: how they are shown.
        truth: (S, H, W) for classes (negative = not labelled), depth and grey (non-finite = not labelled),
            (S, H, W, 3) for normals in -1..1, (S,) for labels of any type; None where there is none.
        predictions: for each network's name, an array like `truth`.
    """

    task: str
    kind: Kind
    truth: npt.NDArray[Any] | None
    predictions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SampleRow:
    """One row of the grid: pictures (S, H, W, 3) in 0..1, or S texts with whether each is right (None: no truth)."""

    task: str
    source: str
    pictures: npt.NDArray[np.float64] | None
    texts: tuple[tuple[str, bool | None], ...] = ()


@dataclass(frozen=True)
class SamplesPlot:
    """What the grid shows.

    Attributes:
        rows: from the top down.
    """

    rows: tuple[SampleRow, ...]


def samples_plot_data(images: npt.NDArray[Any], tasks: Sequence[TaskSamples]) -> SamplesPlot:
    """Prepare the rows of the grid: the images, then for each task its truth above each network's prediction.

    Depth and grey values of one task share one scale, that of its truth; labels that agree with the truth are marked.

    Args:
        images: (S, H, W, 3) or (S, H, W), in 0..1 or as uint8.
        tasks: what to show below.

    Returns:
        what the grid shows.

    Raises:
        BranchnetError: shapes that do not fit the kind, or another number of samples than of images.
    """
    pictures = images / 255.0 if images.dtype == np.uint8 else np.asarray(images, dtype=np.float64)
    if pictures.ndim == 3:
        pictures = np.repeat(pictures[..., None], 3, axis=-1)
    rows = [SampleRow("", "image", np.clip(pictures, 0, 1))]
    for samples in tasks:
        _check(samples, len(images))
        rows += _label_rows(samples) if samples.kind == "label" else _picture_rows(samples)
    return SamplesPlot(tuple(rows))


def _check(samples: TaskSamples, n_images: int) -> None:
    dimensions = {"classes": 3, "depth": 3, "normals": 4, "grey": 3, "label": 1}[samples.kind]
    sources = dict(samples.predictions) if samples.truth is None else {"truth": samples.truth, **samples.predictions}
    for source, values in sources.items():
        if values.ndim != dimensions or len(values) != n_images:
            raise BranchnetError(
                f"{source} of {samples.task!r} has shape {values.shape}; expected {dimensions} dimensions for "
                f"{samples.kind!r}, the first of them {n_images} (images)"
            )


def _label_rows(samples: TaskSamples) -> list[SampleRow]:
    rows = []
    if samples.truth is not None:
        rows.append(SampleRow(samples.task, "truth", None, tuple((str(t), None) for t in samples.truth)))
    for source, values in samples.predictions.items():
        right = [None] * len(values) if samples.truth is None else [bool(r) for r in values == samples.truth]
        rows.append(SampleRow(samples.task, source, None, tuple(zip(map(str, values), right, strict=True))))
    return rows


def _picture_rows(samples: TaskSamples) -> list[SampleRow]:
    sources = {} if samples.truth is None else {"truth": samples.truth}
    every = {**sources, **samples.predictions}
    if samples.kind == "classes":
        palette = class_palette(1 + max(int(values.max()) for values in every.values())) / 255.0
        pictures = {source: _classes(values, palette) for source, values in every.items()}
    elif samples.kind == "normals":
        pictures = {source: _normals(values) for source, values in every.items()}
    else:
        low, high = _range(sources or every)
        colours = "viridis_r" if samples.kind == "depth" else "gray"
        pictures = {source: _scaled(values, low, high, colours) for source, values in every.items()}
    return [SampleRow(samples.task, source, picture) for source, picture in pictures.items()]


def _range(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[float, float]:
    finite = np.concatenate([values[np.isfinite(values)] for values in arrays.values()])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _classes(values: npt.NDArray[Any], palette: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shown: npt.NDArray[np.float64] = palette[np.clip(values, 0, None).astype(np.int64)]
    shown[values < 0] = _MASKED
    return shown


def _normals(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.clip((values + 1) / 2, 0, 1), nan=_MASKED)


def _scaled(values: npt.NDArray[Any], low: float, high: float, colours: str) -> npt.NDArray[np.float64]:
    share = np.clip((values - low) / (high - low or 1.0), 0, 1)
    shown: npt.NDArray[np.float64] = colormaps[colours](np.nan_to_num(share))[..., :3]
    shown[~np.isfinite(values)] = _MASKED
    return shown


_TEXT_ROW, _PICTURE, _GAP, _SEAM, _NAME, _SOURCE = 0.22, 1.0, 0.12, 0.04, 0.08, 0.065


@styled
def draw_samples(plot: SamplesPlot) -> Figure:
    """Draw the grid; right labels have a tick, wrong ones a cross.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    n_images = len(plot.rows[0].pictures) if plot.rows[0].pictures is not None else 0
    left = 0.3 + _NAME * max(len(shorten(row.task, 22)) for row in plot.rows)
    left += _SOURCE * max(len(row.source) for row in plot.rows)
    width = left + n_images * (_PICTURE + _SEAM)
    tops, height = _tops(plot)
    figure = Figure(figsize=(width, height))
    for i, (row, top) in enumerate(zip(plot.rows, tops, strict=True)):
        size = _PICTURE if row.pictures is not None else _TEXT_ROW
        middle = 1 - (top + size / 2) / height
        first = i == 0 or plot.rows[i - 1].task != row.task
        if first:
            figure.text(0.05 / width, middle, shorten(row.task, 22), va="center", fontsize=9, fontweight="bold")
        figure.text(
            (left - 0.12) / width, middle, visible(row.source), va="center", ha="right", fontsize=8, color=MUTED
        )
        for k in range(n_images):
            start = left + k * (_PICTURE + _SEAM)
            if row.pictures is None:
                _write(figure, (start + _PICTURE / 2) / width, middle, row.texts[k])
            else:
                box = (start / width, 1 - (top + size) / height, _PICTURE / width, size / height)
                axes = figure.add_axes(box, xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.imshow(row.pictures[k], interpolation="none", aspect="auto")
    return figure


def _tops(plot: SamplesPlot) -> tuple[list[float], float]:
    """Distance of each row from the top in inches, and the whole height: rows of one task stand close together."""
    tops, top = [], 0.0
    for i, row in enumerate(plot.rows):
        if i:
            top += _SEAM if row.task == plot.rows[i - 1].task else _GAP
        tops.append(top)
        top += _PICTURE if row.pictures is not None else _TEXT_ROW
    return tops, top


def _write(figure: Figure, x: float, y: float, cell: tuple[str, bool | None]) -> None:
    text, right = cell
    sign = {None: "", True: " ✓", False: " ✗"}[right]
    colour = {None: INK, True: COLOURS[2], False: COLOURS[4]}[right]
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    figure.text(x, y, short + sign, ha="center", va="center", fontsize=8, color=colour)
