"""Making and saving figures: one style, no pyplot, files written whole or not at all."""

from __future__ import annotations

import html
import io
import os
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from branchnet.reporting.plots.palette import GRID, INK, MUTED, PAPER, SHARED
from branchnet.utils.files import atomic_write
from branchnet.utils.visible_text import visible

# A fixed salt and no date make equal figures equal files.
_SVG: Any = {"svg.hashsalt": "branchnet"}
_STYLE: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "hatch.linewidth": 0.8,
}
_THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    SHARED: "var(--shared)",
}

styled = matplotlib.rc_context(_STYLE)
"""Decorator of every function that draws: the style holds while it runs and the user's own is put back after."""


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write `figure` to `path` in the format that its suffix names (.png, .svg, .pdf), atomically.

    Text in SVG files becomes outlines, so that they look the same everywhere. Equal figures give equal bytes.

    Args:
        figure: what `branchnet.plot` or a `draw_` function returned.
        path: the file.
        dpi: pixels an inch, of formats with pixels.

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    suffix = Path(path).suffix.lower()
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with atomic_write(path) as temporary, matplotlib.rc_context({**_STYLE, **_SVG, "svg.fonttype": "path"}):
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=dates.get(suffix))
        if suffix == ".svg":  # texts stand in comments, where control characters would break the file
            temporary.write_text(visible(temporary.read_text("utf-8"), lines=True), "utf-8", newline="\n")


def inline_svg(figure: Figure, prefix: str, label: str) -> tuple[str, float]:
    """Return `figure` as an SVG element to put into an HTML page, and its natural width in CSS pixels.

    Text stays text; the colours of the style become CSS variables (--ink, --muted, --grid, --paper, --shared), so that
    the picture takes on the page's light or dark scheme.

    Args:
        figure: the figure.
        prefix: of its ids, which distinguishes them from those of other pictures.
        label: what a screen reader says.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, **_SVG, "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", pad_inches=0.05, transparent=True, metadata={"Date": None}
        )
    svg = visible(buffer.getvalue(), lines=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _THEMED.items():
        svg = re.sub(colour, variable, svg, flags=re.IGNORECASE)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", svg)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert view is not None
    head = f'<svg role="img" aria-label="{html.escape(visible(label))}" viewBox="0 0 {view[1]} {view[2]}">'
    return head + svg[svg.index(">") + 1 :], float(view[1]) * 4 / 3  # 72 points and 96 CSS pixels are an inch


def bare(axes: Axes) -> None:
    """Remove the frame and the tick marks of `axes`; tick labels stay."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def shorten(name: str, longest: int = 18) -> str:
    """Return `name`, or its end after an ellipsis, cut at a dot where one is near: the ends of module paths differ.

    Nothing in it is hidden.
    """
    name = visible(name)
    if len(name) <= longest:
        return name
    end = name[1 - longest :]
    dot = end.find(".")
    return "…" + (end[dot + 1 :] if 0 <= dot < longest // 2 else end)
