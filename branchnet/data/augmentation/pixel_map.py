"""Where each pixel of a changed image came from: whatever the change was, read off a map of coordinates it was done to.

The map has three channels: column and row of every pixel, and a mark that only pixels of the image have, so that what
was filled in is known. It is changed as a mask is, each pixel taking the value of the nearest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from branchnet.errors import DataError

MARK = -12345.0
"""No fill value of images or masks."""
NEAREST_ERROR = 1.5
"""Pixels that the nearest pixel can be from an affine map, with room for rounding."""
_EXACT = 1e-6
_FITTED = 64
"""Rows and columns, about, that the affine map is fitted to."""


@dataclass(frozen=True)
class PixelMap:
    """Where pixels came from.

    Attributes:
        columns, rows: int64 (H, W), of the original image; 0 where `filled`.
        filled: (H, W), where there was no image.
    """

    columns: Tensor
    rows: Tensor
    filled: Tensor

    def take(self, label: Tensor, missing: float) -> Tensor:
        """What a label (..., h, w) is in the changed image, (..., H, W), with `missing` where there is none."""
        places = (self.rows * label.shape[-1] + self.columns).flatten()
        found: Tensor = label.flatten(-2).index_select(-1, places).unflatten(-1, self.filled.shape)
        return found.masked_fill_(self.filled, missing) if bool(self.filled.any()) else found

    def linear(self, what: str) -> Tensor:
        """The linear part of the change, (2, 2) float64: what a step (x, y) in the original image becomes.

        It is the least-squares fit to a grid of pixels; the identity where hardly any pixel of the image is left.

        Args:
            what: what it is needed for, as errors name it.

        Raises:
            DataError: the change is not affine.
        """
        height, width = self.filled.shape
        coarse = slice(None, None, max(1, height // _FITTED)), slice(None, None, max(1, width // _FITTED))
        for chosen in (coarse, (slice(None), slice(None))):  # all pixels where hardly any of the coarse ones is left
            known = ~self.filled[chosen]
            axes = torch.arange(height)[chosen[0]], torch.arange(width)[chosen[1]]
            rows, columns = torch.meshgrid(*axes, indexing="ij")
            here = torch.stack([columns[known], rows[known]], 1).double()
            there = torch.stack([self.columns[chosen][known], self.rows[chosen][known]], 1).double()
            if len(here) < 3:
                continue
            here, there = here - here.mean(0), there - there.mean(0)
            if torch.linalg.matrix_rank(here.T @ here, tol=_EXACT) < 2:
                continue
            back = torch.linalg.solve(here.T @ here, here.T @ there).T
            error = float((here @ back.T - there).abs().max())
            if error > NEAREST_ERROR or abs(float(torch.linalg.det(back))) < _EXACT:
                raise DataError(
                    f"a transform is not affine: pixels are up to {error:.1f} away from where an affine one would put "
                    f"them; expected flips, rotations, crops, resizing, shears and the like, as {what} must follow it"
                )
            return _snapped(torch.linalg.inv(back))
        return torch.eye(2, dtype=torch.float64)


def coordinates(height: int, width: int) -> Tensor:
    """The map of an image that is not changed, float32 (3, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows, torch.full_like(rows, 0)]).float().index_fill_(0, torch.tensor([2]), MARK)


def read_map(changed: Any) -> PixelMap:
    """Read a map that a transform was applied to, (3, H, W)."""
    columns, rows, mark = torch.as_tensor(changed)
    filled = mark != MARK
    columns, rows = (values.masked_fill(filled, 0).round().long() for values in (columns, rows))
    return PixelMap(columns, rows, filled)


def orthogonal(linear: Tensor) -> Tensor:
    """The rotation or reflection that is nearest to a linear map (its polar factor)."""
    left, _, right = torch.linalg.svd(linear)
    return _snapped(left @ right)


def zoom(linear: Tensor) -> float:
    """How many times as large as before things are: the root of the change of areas."""
    return float(torch.linalg.det(linear).abs().sqrt())


def _snapped(matrix: Tensor) -> Tensor:
    """Whole numbers where rounding alone keeps entries from them, so that flips are exact."""
    return torch.where((matrix - matrix.round()).abs() < _EXACT, matrix.round(), matrix)
