"""Letterboxes: whole images, centred on grey, as Pillow's own padding and detectors' loaders make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import branchnet
from branchnet.data.letterboxes import letterboxed
from branchnet.errors import DataError


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "form"), [((20, 30), (64, 64)), ((40, 10), (32, 96)), ((64, 32), (64, 64))])
def test_it_is_what_pillow_pads(tmp_path: Path, size: tuple[int, int], form: tuple[int, int]) -> None:
    image = photo(*size)
    image.save(tmp_path / "a.png")
    found = branchnet.data.load(tmp_path, letterbox=form)[0]
    padded = ImageOps.pad(image, form[::-1], Image.Resampling.BILINEAR, (114, 114, 114))
    assert torch.equal(found, torch.from_numpy(np.array(padded)).permute(2, 0, 1) / 255)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(1, 70))
def test_the_whole_image_is_in_the_middle(height: int, width: int, high: int, wide: int) -> None:
    found = letterboxed(Image.new("RGB", (width, height), "white"), (high, wide))
    assert found.shape == (high, wide, 3)
    inside = (found == 255).all(2)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside.sum() == len(rows) * len(columns)
    assert (found[~inside] == 114).all()
    scale = min(high / height, wide / width)
    assert len(rows) == max(1, round(height * scale)) and len(columns) == max(1, round(width * scale))
    assert 0 <= (high - 1 - rows[-1]) - rows[0] <= 1 and 0 <= (wide - 1 - columns[-1]) - columns[0] <= 1


def test_one_number_is_a_square_and_goes_wherever_images_go(tmp_path: Path) -> None:
    for number in range(3):
        photo(20, 30 + number, number).save(tmp_path / f"{number}.png")
    images = branchnet.data.load(tmp_path, letterbox=32)
    assert len(images) == 3
    taken = branchnet.data.read_samples(images).take(torch.tensor([2, 0]))
    assert torch.equal(taken.inputs, torch.stack([images[2], images[0]]))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    photo(8, 8).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="size=32 and letterbox=64 are given; expected one of them"):
        branchnet.data.load(tmp_path, size=32, letterbox=64)
    with pytest.raises(DataError, match=r"letterbox=\(0, 4\); expected height and width of 1 or more"):
        branchnet.data.load(tmp_path, letterbox=(0, 4))
    with pytest.raises(DataError, match=r"a\.npz is no folder; expected one with letterbox="):
        branchnet.data.load(tmp_path / "a.npz", letterbox=32)
    assert branchnet.data.load(tmp_path / "a.npz").shape == (1, 3, 8, 8)
    assert branchnet.data.load(tmp_path)[0].shape == (3, 224, 224)


def test_it_pads_as_ultralytics_does() -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    for height, width, form in ((30, 50, (64, 64)), (33, 20, (64, 96)), (7, 64, (64, 64))):
        image = Image.new("RGB", (width, height), "white")
        expected = augment.LetterBox(form, auto=False)(image=np.array(image))
        assert np.array_equal(letterboxed(image, form), expected)
