"""A ray caster for worlds of boxes, spheres and cylinders.

Camera frame: x right, y down, z forward. The ray through a point (u, v) of the image plane z = 1 has the direction
(u, v, 1), so its parameter is depth along the optical axis. Rays go through the pixels' centres and corners: labels
come from the centres, colours weigh a centre by 1/2 and its four corners by 1/8 each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from branchnet.data.procedural.frames import to_camera, to_world, turned, turned_each
from branchnet.data.procedural.layouts import SLOTS, World
from branchnet.data.procedural.primitives import HITS, dot
from branchnet.data.procedural.textures import albedo, mixture

FAR = 20.0
SKY, WALL, FLOOR = -3, -2, -1
_SIGNS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]).T
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


def cast(world: World, size: int) -> Surface:
    """Meet the rays of images of size x size pixels, in every world."""
    u, v = image_plane(size)
    tangent = world.tangent[:, None]
    plane = torch.stack([u * tangent, v * tangent, torch.ones_like(u).expand(len(tangent), -1)])
    direction = to_world(plane, world.yaw, world.pitch)
    surface = _room(world, direction, 2 / size * tangent)
    for slot in range(len(SLOTS)):
        _draw(surface, world, slot, direction, size)
    return dataclasses.replace(surface, point=world.camera[:, :, None] + surface.depth * direction)


def _room(world: World, direction: Tensor, pixel: Tensor) -> Surface:
    """Floor, walls, ceiling and sky: the nearest of the planes ahead."""
    camera = world.camera[:, :, None]
    bound = torch.where(direction > 0, world.high[:, :, None], world.low[:, :, None])
    depth, axis = ((bound - camera).abs() / direction.abs()).min(0)
    sky = depth >= FAR
    depth = depth.clamp_max(FAR)
    point = camera + depth * direction
    normal = torch.zeros_like(direction)
    normal.scatter_(0, axis[None], -direction.gather(0, axis[None]).sign())
    colour = _room_colour(world, direction, depth * pixel, axis, point)
    rise = (-2.5 * direction[1]).clamp(0, 1)
    horizon, zenith = world.horizon[:, :, None], world.zenith[:, :, None]
    colour = torch.where(sky, horizon + rise * (zenith - horizon), colour)
    normal = torch.where(sky, -direction / dot(direction, direction).sqrt(), normal)
    solid = torch.where(sky, SKY, torch.where((axis == 1) & (direction[1] > 0), FLOOR, WALL))
    return Surface(depth, point, normal.contiguous(), solid, colour.contiguous(), torch.zeros_like(depth))


def _room_colour(world: World, direction: Tensor, width: Tensor, axis: Tensor, point: Tensor) -> Tensor:
    """Linear RGB (3, K, R) of floor and walls where a pixel is `width` metres wide if seen head-on."""
    floors, walls = (world.materials.index(row, slice(None), None) for row in (_FLOOR_MATERIAL, _WALL_MATERIAL))
    floor = (axis == 1) & (direction[1] > 0)
    frequency = torch.where(floor, floors.frequency, walls.frequency)
    coordinates = (point * frequency).scatter_(0, axis[None], 0)
    footprint = frequency * width / direction.gather(0, axis[None])[0].abs().clamp_min_(0.05)
    share = mixture(torch.where(floor, floors.pattern, walls.pattern), coordinates, footprint)
    bright, dark = (torch.addcmul(side.second, share, side.first - side.second) for side in (floors, walls))
    return torch.where(floor, bright, dark)


def _draw(surface: Surface, world: World, slot: int, direction: Tensor, size: int) -> None:
    """Overwrite the surface, all but its points, where the solid of one slot is nearer."""
    image, ray = _candidates(world, slot, size)
    turn = -world.turn[slot]
    origin = turned(world.camera - world.centre[slot], turn)
    local = turned_each(turn, image, direction.flatten(1).index_select(1, ray))
    depth, normal = HITS[SLOTS[slot]](origin[:, image], local, world.half[slot][:, image])
    nearer = (depth < surface.depth.view(-1)[ray]).nonzero()[:, 0]
    image, ray, depth = image[nearer], ray[nearer], depth[nearer]
    local, normal = local.index_select(1, nearer), normal.index_select(1, nearer)
    material = world.materials.index(slot, image)
    coordinates = (origin[:, image] + depth * local) * material.frequency + material.phase
    slant = dot(normal, local).abs().clamp_min(0.1)
    footprint = material.frequency * depth * (2 / size) * world.tangent[image] / slant
    surface.depth.view(-1)[ray] = depth
    surface.solid.view(-1)[ray] = slot
    surface.gloss.view(-1)[ray] = material.gloss
    surface.normal.view(3, -1).index_copy_(1, ray, turned_each(-turn, image, normal))
    surface.colour.view(3, -1).index_copy_(1, ray, albedo(material, coordinates, footprint))


def _candidates(world: World, slot: int, size: int) -> tuple[Tensor, Tensor]:
    """Images, and rays as indices into (K, R), inside the rectangle of the image that bounds the slot's box."""
    low, high = _extent(world, slot)
    pairs = []
    rays = size**2 + (size + 1) ** 2
    for offset, count, first in ((0.5, size, 0), (0.0, size + 1, size**2)):
        start = ((low + 1) * size / 2 - offset).ceil().clamp(0, count).long()
        end = ((high + 1) * size / 2 - offset).floor().clamp(-1, count - 1).long() + 1
        width, height = (end - start).clamp_min(0) * world.present[slot]
        image = torch.arange(len(width)).repeat_interleave(width * height)
        number = torch.arange(len(image)) - ((width * height).cumsum(0) - width * height)[image]
        row = torch.div(number, width[image], rounding_mode="trunc")
        origin = torch.arange(len(width)) * rays + first + start[1] * count + start[0]
        pairs.append((image, number + origin[image] + row * (count - width)[image]))
    images, indices = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(indices)


def _extent(world: World, slot: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest (u, v), (2, K) each, of the corners of a slot's box, seen by the camera."""
    corners = _SIGNS[:, None] * world.half[slot][:, :, None] * 1.001
    corners = turned(corners, world.turn[slot][:, None]) + (world.centre[slot] - world.camera)[:, :, None]
    x, y, z = to_camera(corners, world.yaw, world.pitch)
    plane = torch.stack([x, y]) / (z.clamp_min(0.05) * world.tangent[:, None])
    return plane.amin(2), plane.amax(2)
