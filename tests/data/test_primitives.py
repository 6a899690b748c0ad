"""Ray intersections against sphere tracing of signed distance functions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.data.procedural.primitives import HITS


def _distance(kind: str, points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Signed distance of points (3, n) to the solid's surface, negative inside."""
    if kind == "sphere":
        return np.linalg.norm(points, axis=0) - half[0]
    if kind == "box":
        outside = np.abs(points) - half[:, None]
    else:
        outside = np.stack([np.hypot(points[0], points[2]) - half[0], np.abs(points[1]) - half[1]])
    return np.linalg.norm(outside.clip(0), axis=0) + outside.max(0).clip(max=0)


def _traced(kind: str, origin: np.ndarray, direction: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Parameters of the first hits by sphere tracing, inf where there is none within 20."""
    length = np.linalg.norm(direction, axis=0)
    travelled = np.zeros(origin.shape[1])
    for _ in range(2000):
        gap = _distance(kind, origin + travelled / length * direction, half)
        travelled = np.minimum(travelled + gap, 20.0)
    return np.where(gap < 1e-6, travelled / length, np.inf)


@pytest.mark.parametrize("kind", ["box", "sphere", "cylinder"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_hits_agree_with_sphere_tracing(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    half = random.uniform(0.3, 1.2, 3)
    origin = random.normal(size=(3, 64))
    origin *= random.uniform(2.5, 5, 64) / np.linalg.norm(origin, axis=0)
    direction = (random.uniform(-1, 1, (3, 64)) - origin) * random.uniform(0.2, 2, 64)
    expected = _traced(kind, origin, direction, half)
    rays = torch.from_numpy(origin), torch.from_numpy(direction)
    depth, normal = HITS[kind](*rays, torch.from_numpy(half)[:, None].expand(3, 64))

    # Rays that graze the solid converge slowly when traced; they are decided by a closer look at the distance.
    closest = np.min([_distance(kind, origin + t * direction, half) for t in np.linspace(0, 20, 4000)], axis=0)
    clear = (np.abs(closest) > 0.02) | np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(depth.numpy())[clear], np.isfinite(expected)[clear])
    both = np.isfinite(expected) & np.isfinite(depth.numpy())
    np.testing.assert_allclose(depth.numpy()[both], expected[both], atol=1e-4)

    point = origin + np.where(both, depth.numpy(), 0) * direction
    step = 1e-5
    gradient = [
        _distance(kind, point + step * axis[:, None], half) - _distance(kind, point - step * axis[:, None], half)
        for axis in np.eye(3)
    ]
    near_rim = np.abs(np.linalg.norm(gradient, axis=0) / (2 * step) - 1) > 1e-3
    np.testing.assert_allclose(
        normal.numpy()[:, both & ~near_rim], np.stack(gradient)[:, both & ~near_rim] / (2 * step), atol=1e-3
    )


@pytest.mark.parametrize("kind", ["box", "sphere", "cylinder"])
def test_a_solid_behind_the_ray_or_around_its_origin_is_no_hit(kind: str) -> None:
    origin = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.0, 5.0]])
    direction = torch.tensor([[0.01, 0.01], [0.02, 0.02], [1.0, 1.0]])
    depth, _ = HITS[kind](origin, direction, torch.ones(3, 2))
    assert torch.isinf(depth).all()


def test_a_vertical_ray_meets_the_cap_of_a_cylinder() -> None:
    origin, direction = torch.tensor([[0.3], [-5.0], [0.2]]), torch.tensor([[0.0], [1.0], [0.0]])
    depth, normal = HITS["cylinder"](origin, direction, torch.tensor([[0.5], [1.0], [0.5]]))
    torch.testing.assert_close(depth, torch.tensor([4.0]))
    torch.testing.assert_close(normal[:, 0], torch.tensor([0.0, -1.0, 0.0]))


@pytest.mark.parametrize("kind", ["box", "sphere", "cylinder"])
def test_rays_along_an_axis_through_the_centre(kind: str) -> None:
    half = torch.tensor([0.5, 0.7, 0.5]) if kind != "sphere" else torch.full((3,), 0.5)
    depth, normal = HITS[kind](torch.diag(torch.full((3,), -4.0)), torch.eye(3), half[:, None].expand(3, 3))
    torch.testing.assert_close(depth, 4 - half)
    torch.testing.assert_close(normal, -torch.eye(3))
