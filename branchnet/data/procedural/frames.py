"""The two frames of a scene and turns between them.

World: x right, y down, z forward, the floor is y = 0. Camera: the same axes seen from the camera, z along its optical
axis. Vectors have shape (3, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor


def turned(vector: Tensor, angle: Tensor) -> Tensor:
    """Return vectors (3, ...) turned about the vertical, from forward to the right, by `angle` (...)."""
    cosine, sine = angle.cos(), angle.sin()
    x, y, z = vector
    return torch.stack([x * cosine + z * sine, y, z * cosine - x * sine])


def turned_each(angle: Tensor, image: Tensor, vector: Tensor) -> Tensor:
    """Return vectors (3, n) turned by the angle (K) of each one's image."""
    cosine, sine = angle.cos()[image], angle.sin()[image]
    x, y, z = vector
    return torch.stack([x * cosine + z * sine, y, z * cosine - x * sine])


def to_world(vector: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return vectors (3, K, R) of the camera frame in the world frame."""
    cosine, sine = pitch.cos()[:, None], pitch.sin()[:, None]
    x, y, z = vector
    return turned(torch.stack([x, y * cosine + z * sine, z * cosine - y * sine]), yaw[:, None])


def to_camera(vector: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return vectors (3, K, R) of the world frame in the camera frame."""
    cosine, sine = pitch.cos()[:, None], pitch.sin()[:, None]
    x, y, z = turned(vector, -yaw[:, None])
    return torch.stack([x, y * cosine - z * sine, z * cosine + y * sine])
