"""Rendered geometry against closed forms and against its own derivatives."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from branchnet.data.procedural.frames import to_camera
from branchnet.data.procedural.layouts import N_DRAWS, SLOTS, World, worlds
from branchnet.data.procedural.rendering import FAR, FLOOR, SKY, cast, image_plane
from branchnet.data.procedural.shading import shade

SIZE = 65


def _random_worlds(count: int, seed: int = 0) -> World:
    draws = np.random.default_rng(seed).random((N_DRAWS, count), np.float32)
    return worlds(torch.from_numpy(draws))


def _world(height: float = 1.5, pitch: float = 0.0, **changes: Tensor) -> World:
    """One world: an endless floor, a level camera with a field of view of 90 degrees, nothing else."""
    infinite = torch.full((3, 1), math.inf)
    high = infinite.clone()
    high[1] = 0
    empty = {
        "camera": torch.tensor([[0.0], [-height], [0.0]]),
        "yaw": torch.zeros(1),
        "pitch": torch.tensor([pitch]),
        "tangent": torch.ones(1),
        "low": -infinite,
        "high": high,
        "present": torch.zeros(len(SLOTS), 1, dtype=torch.bool),
    }
    return dataclasses.replace(_random_worlds(1), **(empty | changes))


def _with_solid(world: World, kind: str, centre: list[float], half: list[float]) -> World:
    slot = len(SLOTS) - 1 - SLOTS[::-1].index(kind)
    present, centres, halves = world.present.clone(), world.centre.clone(), world.half.clone()
    present[slot], centres[slot, :, 0], halves[slot, :, 0] = True, torch.tensor(centre), torch.tensor(half)
    return dataclasses.replace(world, present=present, centre=centres, half=halves, turn=torch.zeros(len(SLOTS), 1))


def _rays(world: World) -> Tensor:
    """Directions (3, K, size^2) of the pixels' centres in the camera frame."""
    u, v = (line[: SIZE * SIZE] * world.tangent[:, None] for line in image_plane(SIZE))
    return torch.stack([u, v, torch.ones_like(u)])


def _centres(field: Tensor) -> Tensor:
    return field[..., : SIZE * SIZE].unflatten(-1, (SIZE, SIZE))


def test_a_sphere_straight_ahead() -> None:
    world = _with_solid(_world(), "sphere", [0.0, -1.5, 5.0], [1.0, 1.0, 1.0])
    surface = cast(world, SIZE)
    middle = SIZE // 2
    assert _centres(surface.depth)[0, middle, middle] == pytest.approx(4.0, abs=1e-5)
    normal = _centres(to_camera(surface.normal, world.yaw, world.pitch))[:, 0, middle, middle]
    torch.testing.assert_close(normal, torch.tensor([0.0, 0.0, -1.0]))
    # The outline of a sphere in a picture: rays whose angle to its centre is below asin(radius / distance).
    rays = _rays(world)[:, 0]
    inside = torch.atan2((rays[0] ** 2 + rays[1] ** 2).sqrt(), rays[2]) < math.asin(1 / 5)
    torch.testing.assert_close(surface.solid[0, : SIZE * SIZE] >= 0, inside)


@pytest.mark.parametrize("pitch", [0.0, 0.3, 1.2])
def test_the_depth_of_the_floor(pitch: float) -> None:
    world = _world(height=1.7, pitch=pitch)
    _, v, _ = _rays(world)[:, 0]
    fall = v * math.cos(pitch) + math.sin(pitch)
    expected = torch.where(fall > 1.7 / FAR, 1.7 / fall, FAR)
    surface = cast(world, SIZE)
    torch.testing.assert_close(surface.depth[0, : SIZE * SIZE], expected, rtol=1e-5, atol=1e-5)
    assert ((surface.solid == FLOOR) == (surface.depth < FAR)).all()


def test_normals_are_unit_vectors_and_face_the_camera() -> None:
    world = _random_worlds(24)
    normal = to_camera(cast(world, SIZE).normal, world.yaw, world.pitch)[..., : SIZE * SIZE]
    torch.testing.assert_close(normal.norm(dim=0), torch.ones_like(normal[0]), rtol=0, atol=1e-4)
    assert ((normal * _rays(world)).sum(0) < 1e-4).all()


def test_normals_are_those_of_the_back_projected_depth_on_planes() -> None:
    world = _random_worlds(24)
    surface = cast(world, SIZE)
    points = (_rays(world) * surface.depth[:, : SIZE * SIZE]).unflatten(-1, (SIZE, SIZE)).double()
    normal = _centres(to_camera(surface.normal, world.yaw, world.pitch))
    across = points[..., 1:-1, 2:] - points[..., 1:-1, :-2]
    down = points[..., 2:, 1:-1] - points[..., :-2, 1:-1]
    derived = torch.linalg.cross(down, across, dim=0)
    derived = derived / derived.norm(dim=0)
    window = torch.stack([normal[..., i : SIZE - 2 + i, j : SIZE - 2 + j] for i in range(3) for j in range(3)])
    solid = _centres(surface.solid)
    same = torch.stack([solid[:, i : SIZE - 2 + i, j : SIZE - 2 + j] for i in range(3) for j in range(3)])
    planar = ((window - window[:1]).abs().amax((0, 1)) < 1e-6) & (same == same[:1]).all(0) & (same[0] != SKY)
    cosine = (derived * normal[..., 1:-1, 1:-1]).sum(0)[planar]
    assert planar.float().mean() > 0.5
    # Two parallel faces at different depths can meet inside one window, as those of stairs do.
    assert (cosine > 0.999).float().mean() > 0.98


def test_points_lie_at_the_depth_along_their_rays() -> None:
    world = _random_worlds(12)
    surface = cast(world, SIZE)
    point = to_camera(surface.point - world.camera[:, :, None], world.yaw, world.pitch)[..., : SIZE * SIZE]
    torch.testing.assert_close(point, _rays(world) * surface.depth[:, : SIZE * SIZE], rtol=1e-4, atol=1e-4)


def test_the_shadow_of_a_sphere_under_a_high_sun_is_a_disc() -> None:
    world = _world(height=4.0, pitch=1.0, light=torch.tensor([[0.0], [-1.0], [0.0]]))
    lit = cast(world, SIZE)
    floor = _with_solid(world, "sphere", [0.0, -2.0, 2.5], [0.6, 0.6, 0.6])
    surface = cast(floor, SIZE)
    seen = (surface.solid == FLOOR) & (lit.solid == FLOOR)
    reach = ((surface.point[0] ** 2 + (surface.point[2] - 2.5) ** 2).sqrt() - 0.6)[seen]
    fall = (shade(floor, surface) / shade(world, lit)).mean(0)[seen]
    assert (reach < -0.05).any()
    assert fall[reach < -0.05].max() < 0.7
    assert fall[reach > 0.05].min() > 0.75


def test_an_occluder_hides_what_is_behind_it_in_either_slot_order() -> None:
    world = _with_solid(_world(), "sphere", [0.0, -1.5, 5.0], [1.0, 1.0, 1.0])
    for depth, expected in ((3.0, "cylinder"), (9.0, "sphere")):
        both = _with_solid(world, "cylinder", [0.0, -1.5, depth], [0.5, 0.5, 0.5])
        middle = _centres(cast(both, SIZE).solid)[0, SIZE // 2, SIZE // 2]
        assert SLOTS[int(middle)] == expected
