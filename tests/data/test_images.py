"""Reading folders and arrays of images, and what is said about those that cannot be read."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from branchnet import BranchnetError, DataError
from branchnet.data import ImageFolder, load_images, to_images
from tests.damage import damaged


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for number, name in enumerate(["b.png", "a.PNG", "more/c.jpg"]):
        Image.fromarray(_photo(20, 30, number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_files_come_in_sorted_order_and_unchanged_at_their_own_size(folder: Path) -> None:
    images = ImageFolder(folder, size=20)
    assert [path.name for path in images.paths] == ["a.PNG", "b.png", "c.jpg"]
    expected = torch.from_numpy(_photo(20, 30, 1)[:, 5:25]).permute(2, 0, 1) / 255
    assert torch.equal(images[0], expected)
    assert torch.equal(load_images(folder, size=20), torch.stack(list(images)))
    assert torch.equal(images[1:][0], images[1])
    assert len(images[1:]) == 2
    assert torch.equal(images[-1], images[2])


@pytest.mark.parametrize("shape", [(48, 64), (90, 60), (40, 501), (20, 33)])
def test_resizing_agrees_with_torchvision(tmp_path: Path, shape: tuple[int, int]) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0)), shape)
    pixels = (smooth[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.savez(tmp_path / "images.npz", images=pixels[None])
    picture = reference.resize(torch.from_numpy(pixels).permute(2, 0, 1), [32], antialias=True)
    expected = reference.center_crop(picture, [32, 32]) / 255
    for source in (tmp_path, tmp_path / "images.npz"):
        assert (load_images(source, size=32)[0] - expected).abs().max() < 1.6 / 255


def test_mean_and_std(folder: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = reference.normalize(load_images(folder, size=16), list(mean), list(std))
    torch.testing.assert_close(load_images(folder, size=16, mean=mean, std=std), expected)
    np.savez(folder / "images.npz", images=np.zeros((2, 5, 6), np.uint8))
    with pytest.raises(DataError, match="have 3 numbers; expected 1, one for each channel"):
        load_images(folder / "images.npz", mean=mean, std=std)
    with pytest.raises(DataError, match=r"std=\(1, 0, 1\)"):
        ImageFolder(folder, std=(1, 0, 1))


def test_other_modes_become_rgb_and_orientation_is_followed(tmp_path: Path) -> None:
    pixels = _photo(8, 8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    grey, transparent, turned = ImageFolder(tmp_path, size=8)
    straight = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(grey, straight[:1].expand(3, -1, -1))
    assert torch.equal(transparent, straight)
    assert torch.equal(turned, straight.rot90(-1, (1, 2)))


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 3), (4, 3, 5, 6), (4, 5, 6, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_arrays_of_every_form(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    values = (np.random.default_rng(0).random(shape) * 255).astype(np.uint8).astype(kind)
    np.savez_compressed(tmp_path / "images.npz", images=values)
    images = load_images(tmp_path / "images.npz")
    channels = 1 if 3 not in shape else 3
    assert images.shape == (4, channels, 5, 6)
    assert images.dtype == torch.float32
    pixel = values.reshape(shape)[2, 3, 4] if shape[1:3] == (5, 6) else values[2, :, 3, 4]
    np.testing.assert_allclose(images[2, :, 3, 4], np.atleast_1d(pixel) / (255 if kind is np.uint8 else 1), rtol=1e-6)


def test_a_truncated_photo_is_named(folder: Path) -> None:
    photo = folder / "more" / "c.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    with pytest.raises(DataError, match=r"c\.jpg cannot be read as an image"):
        load_images(folder, size=16)


def test_text_with_the_name_of_an_image_is_named(folder: Path) -> None:
    (folder / "d.jpeg").write_text("no image")
    with pytest.raises(DataError, match=r"d\.jpeg cannot be read as an image"):
        load_images(folder, size=16)


def test_the_crop_is_what_pillow_cuts_out_of_the_whole_resized_image(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(300, 400), (97, 61), (30, 1001), (16, 16), (200, 50)]):
        pixels = _photo(height, width, number)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        scale = 32 / min(height, width)
        whole = Image.fromarray(pixels).resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
        left, top = round((whole.width - 32) / 2), round((whole.height - 32) / 2)
        expected = np.asarray(whole.crop((left, top, left + 32, top + 32)), int)
        found = (load_images(tmp_path, size=32)[0].permute(1, 2, 0).numpy() * 255).round().astype(int)
        assert np.abs(found - expected).max() <= 1


def test_a_postscript_file_with_the_name_of_a_photo_starts_no_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    (folder / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"photo\.jpg cannot be read as an image"):
        load_images(folder, size=16)
    assert not started
    (folder / "photo.jpg").rename(folder / "drawing.eps")
    assert len(ImageFolder(folder)) == 3


def test_images_far_longer_than_wide_are_refused_before_they_are_read(tmp_path: Path) -> None:
    Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(DataError, match=r"line\.png is 1 x 60000 pixels; expected the longer side at most 50 times"):
        load_images(tmp_path, size=224)
    (tmp_path / "line.png").unlink()
    Image.new("L", (3, 150), 255).save(tmp_path / "strip.png")
    assert torch.equal(load_images(tmp_path, size=8), torch.ones(1, 3, 8, 8))
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 1, 600), np.uint8))
    with pytest.raises(DataError, match="is 1 x 600 pixels"):
        load_images(tmp_path / "images.npz", size=8)


def test_an_array_is_refused_by_its_header(tmp_path: Path) -> None:
    """The data are damaged, too, and not read before the shape is compared."""
    for shape, message in (((200, 5, 7, 9), r"shape \(200, 5, 7, 9\)"), ((200, 3, 7, 15), "CRC")):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.savez(tmp_path / "images.npz", images=pixels)
        content, data = (tmp_path / "images.npz").read_bytes(), pixels[150:152].tobytes()
        assert content.count(data) == 1
        (tmp_path / "images.npz").write_bytes(content.replace(data, bytes(len(data))))
        with pytest.raises(DataError, match=message):
            load_images(tmp_path / "images.npz")


KINDS = ("png", "jpg", "gif", "tiff", "webp", "bmp", "npz")


def damaged_images_are_refused(folder: Path, kind: str, count: int) -> None:
    path = folder / f"images.{kind}"
    if kind == "npz":
        np.savez_compressed(path, images=_photo(12, 17)[None])
    else:
        Image.fromarray(_photo(12, 17)).save(path)
    for content in damaged(path.read_bytes(), count):
        path.write_bytes(content)
        with suppress(BranchnetError):
            images = load_images(path if kind == "npz" else folder, size=8)
            assert images.shape[-2:] == (8, 8)
            assert images.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it repairs
def test_damaged_files_raise_only_our_error(tmp_path: Path, kind: str) -> None:
    damaged_images_are_refused(tmp_path, kind, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_damaged_files_raise_only_our_error(tmp_path: Path, kind: str) -> None:
    damaged_images_are_refused(tmp_path, kind, 5000)


def test_pixels_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has I(;16)? pixels"):
        load_images(tmp_path)


def test_folders_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_images(tmp_path / "nowhere")
    text = tmp_path / "images.npz"
    text.write_text("no array")
    with pytest.raises(DataError, match=r"images\.npz cannot be read as an \.npz file"):
        load_images(text)
    with pytest.raises(DataError, match="is a file; expected a folder"):
        ImageFolder(text)
    Image.fromarray(_photo(8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="the size of images is 0"):
        ImageFolder(tmp_path, size=0)


def _objects() -> np.ndarray:
    return np.array([{"not": "an image"}], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4))}, "has the arrays pictures; expected one named 'images'"),
        ({"images": np.zeros((0, 4, 4))}, "'images' has shape .* expected at least one image"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, "'images' is int64; expected uint8"),
        ({"images": np.full((2, 4, 4), np.nan)}, "has NaN or infinite values"),
        ({"images": np.zeros((2, 4))}, r"has shape \(2, 4\); expected"),
        ({"images": np.zeros((2, 3, 5, 3))}, r"has shape \(2, 3, 5, 3\), which could be either; expected"),
        ({"images": _objects()}, "'images' is object; expected uint8"),
        ({"images": np.zeros((2, 0, 4))}, "of at least one pixel"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "images.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "images.npz")


def test_other_arrays_in_the_file_do_not_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=_photo(4, 5)[None], names=_objects())
    assert load_images(tmp_path / "images.npz").shape == (1, 3, 4, 5)


def test_a_cut_off_array_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).random((20, 8, 8)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
        load_images(path)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_images_in_memory_become_what_networks_take(as_tensor: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    found = to_images(torch.from_numpy(pixels) if as_tensor else pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(to_images(wanted), wanted)
    scaled = to_images(pixels, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    torch.testing.assert_close(scaled[:, 2], (wanted[:, 2] - 0.3) / 4)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 8, 8), np.float32), r"shape \(2, 5, 8, 8\); expected .* with C = 1 or 3"),
        (np.zeros((2, 3, 8, 3), np.float32), "could be"),
        (np.zeros((2, 3, 8, 8), np.int64), "int64"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_images_of_another_form_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_images(array)
