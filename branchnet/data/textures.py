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

    def select(self, keep: Tensor, other: Material) -> Material:
        """This material where `keep` is true, `other` elsewhere; the three broadcast."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Material(*(torch.where(keep, mine, theirs) for mine, theirs in pairs))

    def index(self, *index: Tensor | int | slice | None) -> Material:
        """Every field indexed alike in its last dimensions, where it has the shape of a scalar field."""
        fields = (getattr(self, name) for name in self.__dataclass_fields__)
        return Material(*(field[(..., *index)] for field in fields))


def albedo(material: Material, coordinates: Tensor, footprint: Tensor) -> Tensor:
    """Linear RGB (3, ...) at texture coordinates (3, ...), where a pixel covers `footprint` (...) cells."""
    pattern = material.pattern
    sharpness = 1 / (1.4 * footprint + 1e-6)
    contrast = (2 * sharpness - 0.4).clamp(0, 1)
    wave = _triangle(coordinates)
    bands = (wave * sharpness).clamp(-1, 1)
    checker = bands[0] * bands[1] * bands[2]
    swirl = torch.sin(2.6 * coordinates[0] + 2 * torch.sin(1.7 * coordinates[1] + 1.3 * coordinates[2]))
    dots = ((wave[0] + wave[1] + wave[2] - 1.1) * sharpness * 0.6).clamp(-1, 1)
    value = torch.where(pattern == 1, bands[0], torch.where(pattern == 2, checker, dots))
    value = torch.where(pattern == 3, swirl, value) * contrast
    value = torch.where(pattern == 0, 0.5 * torch.sin(0.7 * coordinates[1]), value)
    return material.second + (0.5 + 0.5 * value) * (material.first - material.second)


def _triangle(value: Tensor) -> Tensor:
    """The triangular wave of period 2 with its maximum 1 at 0, so that a coordinate 0 leaves a checker unchanged."""
    half = 0.5 * value
    return 4 * (half - half.floor() - 0.5).abs() - 1
