"""Colours and marks that colour-blind readers can distinguish, also in grey print, and on light and dark paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INK = "#1b1f24"
MUTED = "#57606a"
GRID = "#d0d7de"
PAPER = "#ffffff"
SHARED = "#5f6a76"

# On coloured cells; not quite PAPER, which a page may turn dark.
BLACK, WHITE = "#000000", "#fefefe"

# Okabe and Ito (2008), but violet and light green for their black and yellow, which vanish on dark or light paper.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8f3fe0", "#a9c95a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Mark:
    """How one task, or one series, is drawn: a colour, and a marker in matplotlib's letters."""

    colour: str
    marker: str


def task_marks(tasks: Sequence[str]) -> dict[str, Mark]:
    """Return one mark for each task: eight colours, and another shape each time that the colours begin again.

    The first 64 marks are distinct; a task's name is always printed next to its mark.
    """
    return {task: Mark(COLOURS[i % 8], MARKERS[i // 8 % len(MARKERS)]) for i, task in enumerate(tasks)}


def series_marks(names: Sequence[str]) -> dict[str, Mark]:
    """Return one mark for each series of a chart: both the colour and the shape change from one to the next.

    The first 64 marks are distinct.
    """
    return {name: Mark(COLOURS[i % 8], MARKERS[(i + i // 8) % len(MARKERS)]) for i, name in enumerate(names)}


def class_palette(n_classes: int) -> npt.NDArray[np.uint8]:
    """Return colours of classes, (n_classes, 3): class 0 light grey, then the eight colours, then mixtures.

    After each round of eight the colours are mixed with black, then with white, ever more strongly.
    """
    base = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], dtype=np.float64)
    rows = [np.array([222.0, 222.0, 222.0])]
    for i in range(max(n_classes - 1, 0)):
        step, colour = i // 8, base[i % 8]
        target = 0.0 if step % 2 else 255.0
        weight = 0.0 if step == 0 else 0.35 + 0.3 * (1 - 0.5 ** ((step - 1) // 2))
        rows.append((1 - weight) * colour + weight * target)
    return np.array(rows[:n_classes]).round().astype(np.uint8).reshape(n_classes, 3)


def text_on(rgb: Sequence[float]) -> str:
    """Return black or white, whichever reads better on `rgb`.

    By the relative luminance of WCAG 2.1; at 0.179 the contrast of black and of white is the same.

    Args:
        rgb: three numbers in 0..1.
    """
    channels = np.asarray(rgb[:3], dtype=np.float64)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return BLACK if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else WHITE
