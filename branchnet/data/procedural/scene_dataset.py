"""Procedural scenes: images of boxes, spheres and cylinders in six layouts, with the labels of real geometry.

`segmentation` (K, H, W) int64: index into `SEGMENTS`. `depth` (K, 1, H, W): metres along the optical axis, at most
`FAR`, which is also the sky's. `normals` (K, 3, H, W): unit vectors in the camera frame (x right, y down, z forward)
that face the camera; the sky's look straight back along the ray. `edges` and `keypoints` (K, 1, H, W) in [0, 1):
of the texture, from the image without noise. `scene` (K) int64: index into `LAYOUTS`. `count` (K, 1): how many
objects are visible. All labels but the integer ones are float32; a pixel's label is that of its centre.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchnet.data.procedural.filters import corner_strength, edge_strength
from branchnet.data.procedural.frames import to_camera
from branchnet.data.procedural.layouts import N_DRAWS, N_FURNITURE, SLOTS, World, worlds
from branchnet.data.procedural.rendering import FLOOR, SKY, WALL, Surface, cast
from branchnet.data.procedural.shading import resolve, shade
from branchnet.errors import DataError

SEGMENTS = ("sky", "wall", "floor", "furniture", "box", "sphere", "cylinder")
_PIXELS_AT_ONCE = 2**17
"""A chunk: 32 scenes at 64 x 64, whose intermediate tensors (nine solids a ray) take tens of megabytes a thread."""
_MOST_THREADS = 8
_SMALLEST = 16
"""Below, small objects fall between the pixels."""


@dataclass(frozen=True)
class Scenes:
    """K images with their labels.

    Attributes:
        images: (K, 3, H, W) float32 in [0, 1].
        labels: one tensor of K labels for each task, in the forms that this module's docstring gives.
    """

    images: Tensor
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)


def scenes(count: int, *, size: int = 64, seed: int = 0, start: int = 0) -> Scenes:
    """Render the scenes `start` to `start + count - 1` of the sequence that `seed` names.

    A scene depends on the seed and its own number alone, so a training set and a test set are two ranges of numbers.
    Its geometry, colours and light are the same at every size.

    Args:
        count: how many, at least 1.
        size: height and width in pixels, at least 16.
        seed: at least 0.
        start: number of the first, at least 0.

    Returns:
        images and labels, on the CPU.

    Raises:
        DataError: an argument is too small.
    """
    for name, value, least in (("count", count, 1), ("size", size, _SMALLEST), ("seed", seed, 0), ("start", start, 0)):
        if value < least:
            raise DataError(f"{name}={value}; expected {least} or more")
    chunk = max(1, _PIXELS_AT_ONCE // size**2)
    numbers = range(start // chunk * chunk, start + count, chunk)
    # Always whole chunks from multiples of `chunk`, so that rounding, too, is the same for every range.
    chunks = _rendered([range(first, first + chunk) for first in numbers], size, seed)
    kept = slice(start - numbers.start, start - numbers.start + count)
    labels = {task: torch.cat([each.labels[task] for each in chunks])[kept] for task in chunks[0].labels}
    return Scenes(torch.cat([each.images for each in chunks])[kept], labels)


def _rendered(chunks: list[range], size: int, seed: int) -> list[Scenes]:
    """The chunks, each in one thread: threads that share every operation wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(threads, _MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(lambda numbers: _render(numbers, size, seed), chunks))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.no_grad()
def _render(numbers: range, size: int, seed: int) -> Scenes:
    generators = [np.random.default_rng((seed, number)) for number in numbers]
    world = worlds(_stacked([generator.random(N_DRAWS, np.float32) for generator in generators]).T.contiguous())
    surface = cast(world, size)
    clean = resolve(shade(world, surface), size)
    noise = _stacked([generator.standard_normal((3, size, size), np.float32) for generator in generators])
    images = (clean + world.noise[:, None, None, None] * noise).clamp(0, 1)
    return Scenes(images, _labels(world, surface, clean))


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _labels(world: World, surface: Surface, clean: Tensor) -> dict[str, Tensor]:
    size = clean.shape[-1]
    shape = (len(clean), size, size)
    solid = surface.solid[:, : size * size]
    normal = to_camera(surface.normal[..., : size * size], world.yaw, world.pitch)
    return {
        "segmentation": _segments(solid).reshape(shape),
        "depth": surface.depth[:, : size * size].reshape(shape)[:, None],
        "normals": normal.transpose(0, 1).reshape(len(clean), 3, size, size),
        "edges": edge_strength(clean),
        "keypoints": corner_strength(clean),
        "scene": world.layout,
        "count": _visible(solid),
    }


def _segments(solid: Tensor) -> Tensor:
    """Indices into `SEGMENTS` for slots, walls, floor and sky."""
    of_slot = ["furniture" if slot < N_FURNITURE else kind for slot, kind in enumerate(SLOTS)]
    names = {SKY: "sky", WALL: "wall", FLOOR: "floor", **dict(enumerate(of_slot))}
    table = torch.tensor([SEGMENTS.index(names[value]) for value in range(SKY, len(SLOTS))])
    return table[solid - SKY]


def _visible(solid: Tensor) -> Tensor:
    """How many different objects are hit, (K, 1) float32."""
    seen = [(solid == slot).any(1) for slot in range(N_FURNITURE, len(SLOTS))]
    return torch.stack(seen, 1).sum(1, keepdim=True).float()
