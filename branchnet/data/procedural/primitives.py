"""Where a ray meets a box, a sphere or an upright cylinder, each in its own frame, centred at the origin.

A ray is `origin + t * direction`; origins, directions and half extents have shape (3, n), one column for each ray.
A hit is the entry into the solid at t > 0; t is inf where a ray misses, or starts inside. Normals have length 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

Hit = tuple[Tensor, Tensor]
_MISS = float("inf")


def hit_box(origin: Tensor, direction: Tensor, half: Tensor) -> Hit:
    """Distances (n) and normals (3, n) on boxes of half extents (x, y, z): the slab method."""
    inverse = _inverse(direction)
    reach = half * inverse.abs()
    middle = -origin * inverse
    enter, axis = (middle - reach).max(0)
    leave = (middle + reach).amin(0)
    normal = torch.zeros_like(direction)
    normal.scatter_(0, axis[None], -direction.gather(0, axis[None]).sign())
    return _where_entered(enter, leave), normal


def hit_sphere(origin: Tensor, direction: Tensor, half: Tensor) -> Hit:
    """Distances (n) and normals (3, n) on spheres whose radius is the first half extent."""
    enter, leave = _between(dot(direction, direction), dot(origin, direction), dot(origin, origin) - half[0] ** 2)
    return _where_entered(enter, leave), (origin + enter * direction) / half[0]


def hit_cylinder(origin: Tensor, direction: Tensor, half: Tensor) -> Hit:
    """Distances (n) and normals (3, n) on cylinders along y, of half extents (radius, half height, ...)."""
    across, along = origin[0::2], direction[0::2]
    enter_side, leave_side = _between(
        (along * along).sum(0).clamp_min(1e-12), (across * along).sum(0), (across * across).sum(0) - half[0] ** 2
    )
    inverse = _inverse(direction[1])
    reach, middle = half[1] * inverse.abs(), -origin[1] * inverse
    enter = torch.maximum(enter_side, middle - reach)
    on_side = (enter_side == enter).to(origin.dtype)
    point = (origin + enter * direction) / half[0]
    normal = torch.stack([point[0] * on_side, -direction[1].sign() * (1 - on_side), point[2] * on_side])
    return _where_entered(enter, torch.minimum(leave_side, middle + reach)), normal


HITS = {"box": hit_box, "sphere": hit_sphere, "cylinder": hit_cylinder}


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of vectors (3, ...)."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def _between(square: Tensor, half_linear: Tensor, constant: Tensor) -> Hit:
    """Both roots of `square * t^2 + 2 * half_linear * t + constant`; NaN where there are none."""
    root = (half_linear**2 - square * constant).sqrt()
    return (-half_linear - root) / square, (root - half_linear) / square


def _inverse(value: Tensor) -> Tensor:
    """1 / value, large instead of infinite at 0, so that rays along an axis keep finite intervals."""
    return 1 / torch.where(value.abs() < 1e-12, 1e-12, value)


def _where_entered(enter: Tensor, leave: Tensor) -> Tensor:
    return torch.where((enter < leave) & (enter > 0), enter, _MISS)
