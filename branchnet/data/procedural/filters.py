"""Edges and keypoints of images, as smooth maps in [0, 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""
_EDGE_SCALE, _CORNER_SCALE = 0.08, 0.05
"""Responses that tanh maps to 0.76: clear edges come close to 1, faint ones stay far below."""


def edge_strength(images: Tensor) -> Tensor:
    """Return texture edges (K, 1, H, W) of RGB images (K, 3, H, W): tanh(|gradient of smoothed grey values| / 0.08)."""
    across, down = _gradient(images)
    return torch.tanh((across**2 + down**2).sqrt() / _EDGE_SCALE)[:, None]


def corner_strength(images: Tensor) -> Tensor:
    """Return keypoints (K, 1, H, W) of RGB images (K, 3, H, W).

    They are tanh(sqrt(smaller eigenvalue of the structure tensor) / 0.05).
    The smaller eigenvalue is the response of Shi and Tomasi (1994), here over a 5 x 5 binomial window.
    """
    across, down = _gradient(images)
    xx, yy, xy = _smooth(across * across), _smooth(down * down), _smooth(across * down)
    spread = ((xx - yy) ** 2 + 4 * xy**2).sqrt()
    smaller = (0.5 * (xx + yy - spread)).clamp_min(0)
    return torch.tanh(smaller.sqrt() / _CORNER_SCALE)[:, None]


def _gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences (K, H, W) of the smoothed grey values, per pixel."""
    red, green, blue = images.unbind(1)
    grey = F.pad(_smooth(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue), (1, 1, 1, 1), mode="replicate")
    return 0.5 * (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]), 0.5 * (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1])


def _smooth(values: Tensor) -> Tensor:
    """Values (K, H, W) under the binomial window [1 4 6 4 1] / 16 along both axes, edges repeated."""
    padded = F.pad(values, (2, 2, 2, 2), mode="replicate")
    return _binomial(_binomial(padded, -1), -2)


def _binomial(values: Tensor, axis: int) -> Tensor:
    length = values.shape[axis] - 4
    a, b, c, d, e = (values.narrow(axis, offset, length) for offset in range(5))
    return (6 * c + 4 * (b + d) + (a + e)) / 16
