"""Faces out of packages, cropped in several ways, because there are few.

Six photos of face-api.js show 22 faces in colour; scikit-image has 100 people of Labeled Faces in the Wild, grey and
25 pixels wide. The photos' faces were found by face-api.js's own detector (SSD, confidence of at least 0.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo_entries.networks.face_network import SIZE

Box = tuple[int, int, int, int]
"""Left, top, width, height."""

FOUND: dict[str, list[Box]] = {
    "sample1.jpg": [(414, 355, 177, 240), (838, 421, 186, 228), (1476, 199, 203, 241)],
    "sample2.jpg": [(1447, 153, 194, 242), (902, 220, 151, 233), (361, 126, 153, 259)],
    "sample3.jpg": [(585, 329, 199, 271), (1514, 292, 170, 280), (1075, 215, 220, 299)],
    "sample4.jpg": [(664, 53, 187, 258), (257, 185, 162, 245), (989, 180, 169, 227), (1277, 144, 145, 244)],
    "sample5.jpg": [
        (787, 109, 156, 212),
        (1113, 198, 158, 236),
        (1406, 390, 165, 271),
        (598, 415, 166, 249),
        (377, 859, 172, 301),
    ],
    "sample6.jpg": [(681, 321, 160, 307), (1180, 305, 188, 280), (1487, 263, 212, 296), (250, 468, 210, 291)],
}
HELD_OUT = ("sample5.jpg", "sample6.jpg")
PEOPLE = 100
FITTED_PEOPLE = 60
"""Of Labeled Faces in the Wild; the others are held out."""
CROPS = 14
GREY_CROPS = 3
"""Of each face of a photo, and of each grey one."""


def photo_faces(folder: Path, *, held_out: bool) -> Tensor:
    """Crops of the faces in photos, (K, 3, 112, 112), bytes as float32."""
    generator = torch.Generator().manual_seed(int(held_out))
    crops: list[np.ndarray] = []
    for name, boxes in FOUND.items():
        if (name in HELD_OUT) == held_out:
            photo = Image.open(folder / name).convert("RGB")
            for box in boxes:
                crops += crops_of(photo, box, CROPS, generator)
    return stacked(crops)


def grey_faces(file: Path, *, held_out: bool) -> Tensor:
    """Crops of grey faces, (K, 3, 112, 112), bytes as float32."""
    generator = torch.Generator().manual_seed(2 + held_out)
    faces = np.load(file)[:PEOPLE]  # what follows is no face
    crops: list[np.ndarray] = []
    for face in faces[FITTED_PEOPLE:] if held_out else faces[:FITTED_PEOPLE]:
        image = Image.fromarray((255 * face).round().astype(np.uint8)).convert("RGB")
        crops += crops_of(image, (0, 0, *image.size), GREY_CROPS, generator)
    return stacked(crops)


def crops_of(image: Image.Image, box: Box, count: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Squares near the box, as wide as 0.85 to 1.1 times its longer side, every other one mirrored."""
    left, top, width, height = box
    for number in range(count):
        size, right, down = torch.rand(3, generator=generator).tolist()
        side = max(width, height) * (0.85 + 0.25 * size)
        x = left + width / 2 + 0.15 * side * (right - 0.5)
        y = top + height / 2 + 0.15 * side * (down - 0.5)
        square = image.transform(
            (SIZE, SIZE),
            Image.Transform.EXTENT,
            (x - side / 2, y - side / 2, x + side / 2, y + side / 2),
            Image.Resampling.BICUBIC,
        )
        yield np.asarray(square)[:, ::-1] if number % 2 else np.asarray(square)


def stacked(crops: list[np.ndarray]) -> Tensor:
    """Crops (H, W, 3) as (K, 3, H, W)."""
    return torch.from_numpy(np.stack(crops)).movedim(3, 1).float()
