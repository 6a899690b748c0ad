"""Where everything is: random worlds in six layouts, drawn for many images at once.

World frame: x right, y down, z forward, in metres; the floor is y = 0 and the camera is above x = z = 0.
A world has nine slots for solids: three boxes of furniture (a table, stairs), then two boxes, two spheres and two
cylinders as objects. Every number comes from one column of uniform draws per image, so no image influences another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from branchnet.data.procedural.frames import turned
from branchnet.data.procedural.palettes import OBJECT_COLOURS, PALETTES, SURFACES
from branchnet.data.procedural.textures import Material

LAYOUTS = ("open", "corridor", "corner", "table", "stairs", "tower")
SLOTS = ("box", "box", "box", "box", "box", "sphere", "sphere", "cylinder", "cylinder")
N_FURNITURE = 3
N_OBJECTS = len(SLOTS) - N_FURNITURE
N_DRAWS = 192

_OPEN, _CORRIDOR, _CORNER, _TABLE, _STAIRS, _TOWER = range(len(LAYOUTS))
_TABLE_HEIGHT, _TABLE_DISTANCE, _TABLE_TOP = 0.75, 2.2, 0.04
_STEP_HEIGHT, _STEP_DEPTH, _STEP_START = 0.26, 0.75, 2.6
# Of each layout: size of the objects, distances between their columns and rows, distance of the first row.
_SCALE = (1.0, 0.8, 0.8, 0.42, 0.72, 0.78)
_COLUMNS = (1.1, 0.68, 0.9, 0.56, 0.95, 1.1)
_ROWS = (1.3, 1.3, 0.95, 0.44, 1.5, 0.8)
_FIRST_ROW = (2.9, 2.6, 2.4, 1.98, 2.95, 2.4)
# Of each layout: the camera's height, and the point on the z axis that it looks at: height and distance.
_CAMERA_HEIGHT = (1.5, 1.4, 1.6, 1.55, 1.7, 1.25)
_TARGET_HEIGHT = (0.5, 0.85, 0.5, 0.7, 0.55, 0.75)
_TARGET_DISTANCE = (3.6, 4.5, 3.0, 2.2, 3.6, 3.0)


@dataclass(frozen=True)
class World:
    """K worlds.

    Attributes:
        layout: index into `LAYOUTS`, (K).
        camera: position, (3, K).
        yaw, pitch: the camera's turn to the right and down, in radians, (K).
        tangent: tangent of half its field of view, (K).
        low, high: walls as bounds of x, y and z, (3, K); infinite where there is none; the floor is high[1] = 0.
        present: which slots are filled, (slots, K).
        centre, half: centres and half extents, (slots, 3, K).
        turn: the solids' turn about the vertical, in radians, (slots, K).
        materials: of the slots, then of floor and walls, (slots + 2, K).
        horizon, zenith: linear RGB of the sky, (3, K).
        light: unit vector towards the light, (3, K).
        noise: standard deviation of the sensor's noise, (K).
    """

    layout: Tensor
    camera: Tensor
    yaw: Tensor
    pitch: Tensor
    tangent: Tensor
    low: Tensor
    high: Tensor
    present: Tensor
    centre: Tensor
    half: Tensor
    turn: Tensor
    materials: Material
    horizon: Tensor
    zenith: Tensor
    light: Tensor
    noise: Tensor


def worlds(draws: Tensor) -> World:
    """Turn uniform draws, (N_DRAWS, K) float32 in [0, 1), into K worlds."""
    stream = _Stream(draws)
    layout = stream.integers(len(LAYOUTS))
    heading = torch.where(layout == _CORNER, stream.uniform(0.6, 0.95), 0.0)
    camera, yaw, pitch, tangent = _cameras(stream, layout, heading)
    low, high = _walls(stream, layout, heading)
    solids = zip(_furniture(stream, layout), _objects(stream, layout), strict=True)
    present, centre, half, turn = (torch.cat(pair) for pair in solids)
    centre = turned(centre.transpose(0, 1), heading).transpose(0, 1)
    materials, horizon, zenith = _colours(stream)
    light = turned(_light(stream), heading)
    noise = stream.uniform(0.004, 0.02)
    return World(
        layout,
        camera,
        yaw,
        pitch,
        tangent,
        low,
        high,
        present,
        centre,
        half,
        turn + heading,
        materials,
        horizon,
        zenith,
        light,
        noise,
    )


class _Stream:
    """Hands out the rows of a table of uniform draws one after another."""

    def __init__(self, draws: Tensor) -> None:
        self._draws = draws
        self._next = 0

    def rows(self, count: int) -> Tensor:
        taken = self._draws[self._next : self._next + count]
        self._next += count
        return taken

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.rows(1)[0]

    def integers(self, bound: int) -> Tensor:
        return (self.rows(1)[0] * bound).long().clamp_max(bound - 1)

    def ranks(self, count: int) -> Tensor:
        """A random permutation of 0..count-1 in each column, (count, K)."""
        return self.rows(count).argsort(0).argsort(0)


def _per_layout(values: tuple[float, ...], layout: Tensor) -> Tensor:
    return torch.tensor(values)[layout]


def _cameras(stream: _Stream, layout: Tensor, heading: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height = _per_layout(_CAMERA_HEIGHT, layout) + stream.uniform(-0.15, 0.2)
    drop = height - _per_layout(_TARGET_HEIGHT, layout)
    pitch = torch.atan2(drop, _per_layout(_TARGET_DISTANCE, layout)) + stream.uniform(-0.04, 0.04)
    sideways = stream.uniform(-0.25, 0.25)
    yaw = heading + stream.uniform(-0.06, 0.06) - torch.where(layout == _CORNER, 0.0, 0.25 * sideways)
    position = torch.stack([sideways, -height, torch.zeros_like(height)])
    return position, yaw, pitch, stream.uniform(0.46, 0.56)


def _walls(stream: _Stream, layout: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    infinity = torch.full_like(heading, math.inf)
    corridor, corner = layout == _CORRIDOR, layout == _CORNER
    far, width, shift = stream.uniform(0.0, 1.0), stream.uniform(1.05, 1.35), stream.uniform(-0.1, 0.1)
    to_corner = 4.2 + 0.9 * far
    back = 4.6 + 1.0 * far
    back = torch.where(layout == _STAIRS, _STEP_START + 3 * _STEP_DEPTH + 0.3 * far, back)
    back = torch.where(corridor, 8.0 + 4.0 * far, back)
    back = torch.where(corner, to_corner * heading.cos(), back)
    back = torch.where(layout == _OPEN, infinity, back)
    left = torch.where(corridor, shift - width, -infinity)
    right = torch.where(corridor, shift + width, torch.where(corner, to_corner * heading.sin(), infinity))
    ceiling = torch.where(corridor, -stream.uniform(2.3, 2.7), -infinity)
    return torch.stack([left, ceiling, -infinity]), torch.stack([right, torch.zeros_like(back), back])


def _furniture(stream: _Stream, layout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A table of a top and two panels, or three steps; each (slots, ...) as in `World`."""
    width, inset = stream.uniform(0.95, 1.1), stream.uniform(0.06, 0.3)
    zero = torch.zeros_like(width)
    leg = (_TABLE_HEIGHT - 2 * _TABLE_TOP) / 2
    middle = zero + _TABLE_DISTANCE
    top = torch.stack([zero, zero - _TABLE_HEIGHT + _TABLE_TOP, middle, width, zero + _TABLE_TOP, zero + 0.5])
    panel = torch.stack([width - inset, zero - leg, middle, zero + 0.04, zero + leg, zero + 0.44])
    other = torch.stack([inset - width, *panel[1:]])
    steps = [_step(number, zero) for number in range(N_FURNITURE)]
    solids = torch.where(layout == _TABLE, torch.stack([top, panel, other]), torch.stack(steps))
    present = ((layout == _TABLE) | (layout == _STAIRS)).expand(N_FURNITURE, -1)
    return present, solids[:, :3], solids[:, 3:], zero.expand(N_FURNITURE, -1)


def _step(number: int, zero: Tensor) -> Tensor:
    half, depth = zero + (number + 1) * _STEP_HEIGHT / 2, zero + _STEP_DEPTH / 2
    return torch.stack([zero, -half, _STEP_START + (2 * number + 1) * depth, zero + 4.0, half, depth])


def _objects(stream: _Stream, layout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two boxes, two spheres, two cylinders on a jittered grid, or in a tower; each (slots, ...) as in `World`."""
    half = _sizes(stream) * _per_layout(_SCALE, layout)
    number = stream.integers(N_OBJECTS) + 1
    present = stream.ranks(N_OBJECTS) < number
    centre = _grid(stream, layout, half)
    turn = (2 * stream.rows(N_OBJECTS) - 1) * math.pi / 4
    tower_present, tower_centre = _tower(stream, present, half, centre)
    is_tower = layout == _TOWER
    return torch.where(is_tower, tower_present, present), torch.where(is_tower, tower_centre, centre), half, turn


def _sizes(stream: _Stream) -> Tensor:
    """Half extents (objects, 3, K) of boxes, spheres and cylinders at scale 1."""
    size, tall, wide = 0.26 + 0.14 * stream.rows(6), 0.65 + 0.7 * stream.rows(6), 0.75 + 0.25 * stream.rows(6)
    boxes = torch.stack([size * wide, size * tall, size], 1)[:2] * 0.9
    spheres = size[2:4, None].expand(-1, 3, -1)
    cylinders = torch.stack([size * wide, size * (tall + 0.25), size * wide], 1)[4:] * 0.85
    return torch.cat([boxes, spheres, cylinders])


def _grid(stream: _Stream, layout: Tensor, half: Tensor) -> Tensor:
    """Centres (objects, 3, K): each object in its own cell of a grid of three columns and two rows."""
    cell = stream.ranks(N_OBJECTS)
    row, column = cell // 3, cell % 3
    x = (column - 1 + 0.3 * (stream.rows(N_OBJECTS) - 0.5)) * _per_layout(_COLUMNS, layout)
    z = (row + 0.3 * (stream.rows(N_OBJECTS) - 0.5) * (layout != _STAIRS)) * _per_layout(_ROWS, layout)
    z = z + _per_layout(_FIRST_ROW, layout)
    surface = torch.where(layout == _TABLE, -_TABLE_HEIGHT, 0.0).expand_as(x)
    surface = torch.where(layout == _STAIRS, -_STEP_HEIGHT * (2 * row + 1), surface)
    return torch.stack([x, surface - half[:, 1], z], 1)


def _tower(stream: _Stream, present: Tensor, half: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Slots filled and centres where boxes and cylinders are stacked in random order and the first sphere tops them."""
    stacked = [0, 1, 4, 5, 2]
    present = present.clone()
    present[[0, 4]] = True
    rank = torch.cat([stream.ranks(4), torch.full_like(stream.ranks(1), 4)])
    below = (rank[None] < rank[:, None]) & present[None, stacked]
    height = half[stacked, 1]
    base = (below * 2 * height[None]).sum(1)
    x, z = stream.uniform(-0.35, 0.35), stream.uniform(2.9, 3.4)
    nudge = 0.05 * (stream.rows(5) - 0.5)
    centre = centre.clone()
    centre[stacked] = torch.stack([x + nudge, -(base + height), z.expand_as(base)], 1)
    side = torch.where(x > 0, -1.0, 1.0) * stream.uniform(0.75, 1.0)
    centre[3] = torch.stack([x + side, -half[3, 1], z - 0.3])
    return present, centre


def _colours(stream: _Stream) -> tuple[Material, Tensor, Tensor]:
    """Materials (slots + 2, K), and the colours of the sky at the horizon and at the zenith."""
    palette = stream.integers(len(PALETTES))
    surfaces, objects = torch.tensor(SURFACES)[palette], torch.tensor(OBJECT_COLOURS)[palette]
    floor, wall, horizon, zenith = (_varied(stream, colour.T) for colour in surfaces.unbind(1))
    order = stream.ranks(N_OBJECTS)
    firsts = objects.permute(1, 2, 0).gather(0, order[:, None].expand(-1, 3, -1))
    wood = _varied(stream, objects[:, -1].T)
    first = torch.cat([wood.expand(N_FURNITURE, -1, -1), firsts, floor[None], wall[None]])
    count = len(first)
    strength = stream.rows(count)[:, None]
    strength[:N_FURNITURE] = strength[:1]
    lighter = first + (1 - first) * (0.35 + 0.4 * strength)
    darker = first * (0.55 - 0.35 * strength)
    second = torch.where(stream.rows(count)[:, None] < 0.6, lighter, darker)
    calm = first * (0.82 - 0.25 * strength)
    second = torch.cat([calm[:N_FURNITURE], second[N_FURNITURE:-2], calm[-2:-1], 0.5 * (calm[-1:] + first[-1:])])
    pattern = _patterns(stream.rows(count))
    sizes = torch.tensor([2.0] * N_FURNITURE + [5.5] * N_OBJECTS + [1.3, 1.5])[:, None]
    frequency = sizes * (0.7 + 0.6 * stream.rows(count))
    phase = 2 * torch.stack([stream.rows(count), stream.rows(count), stream.rows(count)])
    phase[:, -2:] = 0
    gloss = torch.cat([torch.zeros(N_FURNITURE, 1), torch.full((N_OBJECTS, 1), 0.5), torch.zeros(2, 1)])
    gloss = gloss * stream.rows(count) ** 2
    return Material(first.transpose(0, 1), second.transpose(0, 1), pattern, frequency, phase, gloss), horizon, zenith


def _patterns(draw: Tensor) -> Tensor:
    """Patterns (slots + 2, K): any on objects, stripes or marble on furniture, calm ones on walls."""
    choice = (draw * 5).long().clamp_max(4)
    choice[:N_FURNITURE] = torch.where(draw[:1] < 0.5, 3, 0)
    choice[-1] = torch.where(draw[-1] < 0.5, 0, torch.where(draw[-1] < 0.75, 1, 3))
    return choice


def _varied(stream: _Stream, colour: Tensor) -> Tensor:
    """A colour (3, K) a little lighter or darker."""
    return colour * stream.uniform(0.9, 1.08)


def _light(stream: _Stream) -> Tensor:
    """Unit vectors (3, K) towards a light behind the camera, to its left or right."""
    azimuth, elevation = stream.uniform(0.35, 1.25), stream.uniform(0.6, 1.05)
    azimuth = torch.where(stream.uniform(-1, 1) < 0, -azimuth, azimuth)
    return torch.stack(
        [azimuth.sin() * elevation.cos(), -elevation.sin(), -azimuth.cos() * elevation.cos()],
    )
