"""Letterboxes: a whole image resized to fit into a rectangle, with grey on the sides that are left.

As detectors of the YOLO family are trained and run, but for the resizing, which is antialiased here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from branchnet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = 114
"""Of 255, the value of the sides."""


def letterboxed(image: Image, form: tuple[int, int]) -> np.ndarray:
    """Fit an image in.

    Args:
        image: in RGB.
        form: height and width.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    from PIL import Image as pillow

    height, width = form
    scale = min(height / image.height, width / image.width)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    inner = image if fitted == image.size else image.resize(fitted, pillow.Resampling.BILINEAR)
    found = np.full((height, width, 3), GREY, np.uint8)
    # A side of an odd number of pixels is shorter above and on the left.
    top, left = (height - fitted[1]) // 2, (width - fitted[0]) // 2
    found[top : top + fitted[1], left : left + fitted[0]] = np.asarray(inner)
    return found


def checked_letterbox(letterbox: int | tuple[int, int], size: int | None) -> tuple[int, int]:
    """Height and width.

    Raises:
        DataError: a size next to it, or lengths below 1.
    """
    if size is not None:
        raise DataError(f"size={size} and letterbox={letterbox} are given; expected one of them")
    form = (letterbox, letterbox) if isinstance(letterbox, int) else tuple(letterbox)
    if len(form) != 2 or min(form) < 1:
        raise DataError(f"letterbox={letterbox!r}; expected height and width of 1 or more, or one number for both")
    return form[0], form[1]
