"""Procedural textures: a material's colour at points of its surface, smoothed to the size of a pixel.

A pattern is a number in [-1, 1] that mixes a material's two colours. Its cells are one unit wide in texture
coordinates, `frequency * point + phase`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATTERNS = ("plain", "stripes", "checker", "marble", "dots")


@dataclass(frozen=True)
class Material:
    """Materials in columns: every tensor ends in the same shape, one entry for each column.

    Attributes:
        first, second: linear RGB colours, (3, ...).
        pattern: index into `PATTERNS`, (...).
        frequency: cells per metre, (...).
        phase: offset of the pattern in cells, (3, ...).
        gloss: strength of the highlight, (...).
    """

    first: Tensor
    second: Tensor
    pattern: Tensor
    frequency: Tensor
    phase: Tensor
    gloss: Tensor

    def index(self, *index: Tensor | int | slice | None) -> Material:
        """Return every field indexed in the same way in its last dimensions, where a scalar field has its shape."""
        fields = (getattr(self, name) for name in self.__dataclass_fields__)
        return Material(*(field[(..., *index)] for field in fields))


def albedo(material: Material, coordinates: Tensor, footprint: Tensor) -> Tensor:
    """Return linear RGB (3, n) at texture coordinates (3, n), where a pixel covers `footprint` (n) cells."""
    share = mixture(material.pattern, coordinates, footprint)
    return material.second + share * (material.first - material.second)


def mixture(pattern: Tensor, coordinates: Tensor, footprint: Tensor) -> Tensor:
    """Return the first colour's share in [0, 1], (...), of patterns (...) at texture coordinates (3, ...).

    Along an axis on which the coordinate is 0 everywhere, a checker is the same as without that axis.
    """
    sharpness = 0.45 / (footprint + 1e-6)
    wave = torch.cos(torch.pi * coordinates)
    bands = (wave * sharpness).clamp_(-1, 1)
    stripes = bands[0]
    checker = stripes * bands[1] * bands[2]
    dots = ((wave[0] + wave[1] + wave[2] - 1.1) * sharpness).clamp_(-1, 1)
    swirl = torch.sin(2.6 * coordinates[0] + 2 * torch.sin(1.7 * coordinates[1] + 1.3 * coordinates[2]))
    value = torch.where(pattern == 1, stripes, torch.where(pattern == 2, checker, dots))
    value = torch.where(pattern == 3, swirl, value) * (3 * sharpness - 0.4).clamp_(0, 1)
    value = torch.where(pattern == 0, 0.5 * torch.cos(0.7 * coordinates[1]), value)
    return (0.5 * value).add_(0.5)
