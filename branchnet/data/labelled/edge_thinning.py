"""Edges of a map of classes: where neighbours differ, thinned to one pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def boundaries(classes: npt.NDArray[Any]) -> Mask:
    """Where the Laplacian of a map (its four neighbours, mirrored at the border) is not 0.

    Args:
        classes: (H, W).
    """
    around = np.pad(classes.astype(np.int64), 1, mode="reflect")
    total = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return np.asarray(total != 4 * classes)


def thin(mask: Mask) -> Mask:
    """Thin a mask to lines of one pixel, as scikit-image's `thin` does until nothing changes.

    Guo and Hall (1989, "Parallel Thinning with Two-Subiteration Algorithms"), with the conditions G1 to G3 as MATLAB's
    `bwmorph(..., 'thin')` writes them: a pixel goes if it is on the border of the mask and no line breaks or shortens.

    Args:
        mask: (H, W).
    """
    mask = mask.copy()
    while True:
        before = mask.sum()
        for second in (False, True):
            mask &= ~_removable(mask, second)
        if mask.sum() == before:
            return mask


def _removable(mask: Mask, second: bool) -> Mask:
    east, north_east, north, north_west, west, south_west, south, south_east = x = _neighbours(mask)
    crossings = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int64) for i in (0, 2, 4, 6))
    first_pairs = sum((x[i] | x[i + 1]).astype(np.int64) for i in (0, 2, 4, 6))
    other_pairs = sum((x[i] | x[(i + 1) % 8]).astype(np.int64) for i in (1, 3, 5, 7))
    pairs = np.minimum(first_pairs, other_pairs)
    if second:
        inner = (south_west | south | ~north_west) & west
    else:
        inner = (north_east | north | ~south_east) & east
    return np.asarray(mask & (crossings == 1) & (pairs >= 2) & (pairs <= 3) & ~inner)


def _neighbours(mask: Mask) -> list[Mask]:
    """The eight neighbours of each pixel: east first, then counter-clockwise; none beyond the border."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    steps = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
    return [padded[1 + row : 1 + row + height, 1 + column : 1 + column + width] for row, column in steps]
