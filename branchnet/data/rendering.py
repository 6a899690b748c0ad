"""A ray caster for worlds of boxes, spheres and cylinders: geometry first, then light.

Camera frame: x right, y down, z forward. The ray through a point (u, v) of the image plane z = 1 has the direction
(u, v, 1), so its parameter is depth along the optical axis. Rays go through the pixels' centres and corners: labels
come from the centres, colours weigh a centre by 1/2 and its four corners by 1/8 each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layouts import N_FURNITURE, SLOTS, World, turned
from .primitives import HITS, dot
from .textures import albedo

FAR = 20.0
SKY, WALL, FLOOR = -3, -2, -1
_FLOOR_MATERIAL, _WALL_MATERIAL = len(SLOTS), len(SLOTS) + 1


@dataclass(frozen=True)
class Surface:
    """What R rays meet in each of K worlds.

    Attributes:
        depth: along the optical axis in metres, at most `FAR`, (K, R).
        point, normal: in the world frame; normals have length 1 and face the camera, (3, K, R).
        solid: slot of the solid that was hit, or `SKY`, `WALL` or `FLOOR`, (K, R) int64.
        colour: linear RGB of the material, (3, K, R).
        gloss: strength of the highlight, (K, R).
    """

    depth: Tensor
    point: Tensor
    normal: Tensor
    solid: Tensor
    colour: Tensor
    gloss: Tensor


def image_plane(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates u and v in [-1, 1] of the size^2 pixel centres, row by row, then of the (size + 1)^2 corners."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    corners = 2 * torch.arange(size + 1) / size - 1
    grids = [torch.meshgrid(line, line, indexing="xy") for line in (centres, corners)]
    return torch.cat([u.flatten() for u, _ in grids]), torch.cat([v.flatten() for _, v in grids])


def cast(world: World, u: Tensor, v: Tensor, pixel: float) -> Surface:
    """Meet the rays through (u, v), each (R), in every world; `pixel` is a pixel's width in their unit."""
    tangent = world.tangent[:, None]
    plane = torch.stack([u * tangent, v * tangent, torch.ones_like(u).expand(len(tangent), -1)])
    direction = to_world(plane, world)
    surface = _room(world, direction, pixel * tangent)
    for slot in range(len(SLOTS)):
        _draw(surface, world, slot, direction, u, v, pixel)
    return surface


def shade(world: World, surface: Surface) -> Tensor:
    """Linear RGB, (3, K, R): a sun with hard shadows, a sky with soft ones, highlights and haze."""
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


def to_world(vector: Tensor, world: World) -> Tensor:
    """Vectors (3, K, R) of the camera frame in the world frame."""
    cosine, sine = world.pitch.cos()[:, None], world.pitch.sin()[:, None]
    x, y, z = vector
    return turned(torch.stack([x, y * cosine + z * sine, z * cosine - y * sine]), world.yaw[:, None])


def to_camera(vector: Tensor, world: World) -> Tensor:
    """Vectors (3, K, R) of the world frame in the camera frame."""
    cosine, sine = world.pitch.cos()[:, None], world.pitch.sin()[:, None]
    x, y, z = turned(vector, -world.yaw[:, None])
    return torch.stack([x, y * cosine - z * sine, z * cosine + y * sine])


def resolve(colour: Tensor, size: int) -> Tensor:
    """Images (K, 3, size, size) in [0, 1], gamma encoded, from linear RGB at centres and corners, (3, K, R)."""
    encoded = colour.clamp(0, 1).sqrt().transpose(0, 1)
    count = len(encoded)
    centres = encoded[..., : size * size].reshape(count, 3, size, size)
    corners = encoded[..., size * size :].reshape(count, 3, size + 1, size + 1)
    pairs = corners[..., 1:] + corners[..., :-1]
    return 0.5 * centres + 0.125 * (pairs[..., 1:, :] + pairs[..., :-1, :])


def _room(world: World, direction: Tensor, pixel: Tensor) -> Surface:
    """Floor, walls, ceiling and sky: the nearest of the planes ahead."""
    camera = world.camera[:, :, None]
    bound = torch.where(direction > 0, world.high[:, :, None], world.low[:, :, None])
    depth, axis = ((bound - camera) / direction).min(0)
    sky = depth >= FAR
    depth = depth.clamp_max(FAR)
    point = camera + depth * direction
    normal = torch.zeros_like(direction)
    normal.scatter_(0, axis[None], -direction.gather(0, axis[None]).sign())
    floor = (axis == 1) & (direction[1] > 0)
    materials = world.materials
    floors, walls = (materials.index(row, slice(None), None) for row in (_FLOOR_MATERIAL, _WALL_MATERIAL))
    material = floors.select(floor, walls)
    footprint = material.frequency * depth * pixel / dot(normal, direction).abs().clamp_min(0.05)
    colour = albedo(material, point * material.frequency * (normal == 0), footprint)
    rise = (-2.5 * direction[1]).clamp(0, 1)
    horizon, zenith = world.horizon[:, :, None], world.zenith[:, :, None]
    colour = torch.where(sky, horizon + rise * (zenith - horizon), colour)
    normal = torch.where(sky, -direction / dot(direction, direction).sqrt(), normal)
    solid = torch.where(sky, SKY, torch.where(floor, FLOOR, WALL))
    return Surface(depth, point, normal, solid, colour, torch.zeros_like(depth))


def _draw(surface: Surface, world: World, slot: int, direction: Tensor, u: Tensor, v: Tensor, pixel: float) -> None:
    """Overwrite the surface where the solid of one slot is nearer."""
    image, ray = _candidates(world, slot, u, v)
    rays = direction[:, image, ray]
    turn = -world.turn[slot, image]
    origin = turned((world.camera - world.centre[slot])[:, image], turn)
    local = turned(rays, turn)
    depth, normal = HITS[SLOTS[slot]](origin, local, world.half[slot][:, image])
    nearer = (depth < surface.depth[image, ray]).nonzero()[:, 0]
    image, ray, depth, local, rays = image[nearer], ray[nearer], depth[nearer], local[:, nearer], rays[:, nearer]
    normal, origin = normal[:, nearer], origin[:, nearer]
    material = world.materials.index(slot, image)
    coordinates = (origin + depth * local) * material.frequency + material.phase
    slant = dot(normal, local).abs().clamp_min(0.1)
    footprint = material.frequency * depth * pixel * world.tangent[image] / slant
    surface.depth[image, ray] = depth
    surface.point[:, image, ray] = world.camera[:, image] + depth * rays
    surface.normal[:, image, ray] = turned(normal, world.turn[slot, image])
    surface.solid[image, ray] = slot
    surface.colour[:, image, ray] = albedo(material, coordinates, footprint)
    surface.gloss[image, ray] = material.gloss


def _candidates(world: World, slot: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Images and rays inside the rectangle of the image that bounds the slot's bounding sphere."""
    x, y, z = to_camera((world.centre[slot] - world.camera)[:, :, None], world)[..., 0]
    radius = world.half[slot].square().sum(0).sqrt() * 1.001
    left, right = _extent(x, z, radius, world.tangent)
    top, bottom = _extent(y, z, radius, world.tangent)
    left = torch.where(world.present[slot], left, torch.inf)
    columns = (u > left[:, None]) & (u < right[:, None])
    rows = (v > top[:, None]) & (v < bottom[:, None])
    image, ray = (columns & rows).nonzero(as_tuple=True)
    return image, ray


def _extent(across: Tensor, forward: Tensor, radius: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tangents to a circle, seen from the origin, meet the image plane."""
    distance = (across**2 + forward**2).sqrt()
    middle = torch.atan2(across, forward)
    spread = torch.where(distance > radius, torch.asin((radius / distance).clamp_max(1)), torch.pi)
    low, high = ((middle + side).clamp(-1.5, 1.5).tan() / tangent for side in (-spread, spread))
    return low, high


def _shadows(world: World, surface: Surface) -> tuple[Tensor, Tensor]:
    """The sun's visibility, 0 or 1, and the sky's, in [0, 1], (K, R) each."""
    sun, open_sky = torch.ones_like(surface.depth), torch.ones_like(surface.depth)
    start = surface.point + 2e-3 * surface.normal
    for slot in range(len(SLOTS)):
        offset = start - world.centre[slot][:, :, None]
        square = dot(offset, offset)
        along = dot(offset, world.light[:, :, None].expand_as(offset))
        radius = world.half[slot].square().sum(0)[:, None] * world.present[slot][:, None]
        near = ((square - along**2 < radius) & (along < 0)).nonzero(as_tuple=True)
        _darken(sun, world, slot, offset, near)
        if slot >= N_FURNITURE:
            facing = (-dot(surface.normal, offset) / square.sqrt()).clamp_min(0)
            open_sky *= 1 - facing * (0.8 * radius / square).clamp_max(0.75)
    return sun, open_sky


def _darken(sun: Tensor, world: World, slot: int, offset: Tensor, near: tuple[Tensor, ...]) -> None:
    """Set the sun's visibility to 0 where the way from a point, (3, K, R) from the slot's centre, to it is blocked."""
    image, ray = near
    turn = -world.turn[slot, image]
    towards = turned(world.light[:, image], turn)
    depth, _ = HITS[SLOTS[slot]](turned(offset[:, image, ray], turn), towards, world.half[slot][:, image])
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
