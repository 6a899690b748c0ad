"""Light: a sun with hard shadows, a sky with soft ones, highlights and haze."""

from __future__ import annotations

import torch
from torch import Tensor

from branchnet.data.procedural.frames import turned, turned_each
from branchnet.data.procedural.layouts import N_FURNITURE, SLOTS, World
from branchnet.data.procedural.primitives import HITS, dot
from branchnet.data.procedural.rendering import SKY, Surface


def shade(world: World, surface: Surface) -> Tensor:
    """Linear RGB of every ray, (3, K, R)."""
    light, normal = world.light[:, :, None], surface.normal
    towards = dot(light, normal).clamp_min(0)
    sun, open_sky = _shadows(world, surface)
    sun = sun * towards
    hemisphere = 0.5 - 0.5 * normal[1]
    ambient = (0.3 + 0.22 * hemisphere) * open_sky * _corners(world, surface)
    warm, cool = torch.tensor([1.06, 1.0, 0.9])[:, None, None], torch.tensor([0.94, 1.0, 1.1])[:, None, None]
    colour = surface.colour * (ambient * cool + 0.85 * sun * warm) + _highlights(world, surface, sun)
    sky = surface.solid == SKY
    haze = (1 - torch.exp(-0.002 * surface.depth**2))[None] * torch.isinf(world.high[2])[:, None]
    colour = colour + haze * (world.horizon[:, :, None] - colour)
    return torch.where(sky, surface.colour, colour)


def resolve(colour: Tensor, size: int) -> Tensor:
    """Images (K, 3, size, size) in [0, 1], gamma encoded, from linear RGB at centres and corners, (3, K, R)."""
    encoded = colour.clamp(0, 1).sqrt().transpose(0, 1)
    count = len(encoded)
    centres = encoded[..., : size * size].reshape(count, 3, size, size)
    corners = encoded[..., size * size :].reshape(count, 3, size + 1, size + 1)
    pairs = corners[..., 1:] + corners[..., :-1]
    return 0.5 * centres + 0.125 * (pairs[..., 1:, :] + pairs[..., :-1, :])


def _shadows(world: World, surface: Surface) -> tuple[Tensor, Tensor]:
    """The sun's visibility, 0 or 1, and the sky's, in [0, 1], (K, R) each."""
    sun, open_sky = torch.ones_like(surface.depth), torch.ones_like(surface.depth)
    start = surface.point + 2e-3 * surface.normal
    for slot in range(len(SLOTS)):
        filled = world.present[slot].nonzero()[:, 0]
        offset = start.index_select(1, filled).sub_(world.centre[slot][:, filled, None])
        square = dot(offset, offset)
        along = dot(offset, world.light[:, filled, None].expand_as(offset))
        radius = world.half[slot][:, filled].square().sum(0)[:, None]
        near = ((square - along**2 < radius) & (along < 0)).nonzero(as_tuple=True)
        _darken(sun, world, slot, offset, filled, near)
        if slot >= N_FURNITURE:
            facing = (-dot(surface.normal.index_select(1, filled), offset) / square.sqrt()).clamp_min_(0)
            hidden = facing.mul_((0.8 * radius / square).clamp_max_(0.75))
            open_sky[filled] *= 1 - hidden
    return sun, open_sky


def _darken(sun: Tensor, world: World, slot: int, offset: Tensor, filled: Tensor, near: tuple[Tensor, ...]) -> None:
    """Set the sun's visibility to 0 where the way from a point to it is blocked.

    Points are `offset` from the slot's centre, (3, images where it is filled, R); `near` are those worth a look.
    """
    row, ray = near
    image, turn = filled[row], -world.turn[slot]
    towards = turned(world.light, turn)[:, image]
    start = turned_each(turn, image, offset.flatten(1).index_select(1, row * offset.shape[2] + ray))
    depth, _ = HITS[SLOTS[slot]](start, towards, world.half[slot][:, image])
    blocked = depth.isfinite().nonzero()[:, 0]
    sun[image[blocked], ray[blocked]] = 0


def _corners(world: World, surface: Surface) -> Tensor:
    """The darkening towards the edges where floor, walls and ceiling meet, (K, R)."""
    factor = torch.ones_like(surface.depth)
    for bounds in (world.low, world.high):
        for axis in range(3):
            bound = bounds[axis][:, None]
            if bound.isfinite().any():
                gap = surface.point[axis] - bound
                factor *= 1 - 0.3 * (1 - surface.normal[axis].abs()) / (1 + 8 * gap**2)
    return factor


def _highlights(world: World, surface: Surface, sun: Tensor) -> Tensor:
    """Blinn-Phong highlights, (K, R)."""
    view = world.camera[:, :, None] - surface.point
    halfway = view / dot(view, view).sqrt() + world.light[:, :, None]
    shine = (dot(halfway, surface.normal) / dot(halfway, halfway).sqrt()).clamp_min(0)
    for _ in range(5):
        shine = shine * shine
    return surface.gloss * shine * (sun > 0)
