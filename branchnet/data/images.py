"""Images of one's own: a folder read file by file, or an array in an .npz file.

Images become float32 RGB in [0, 1], (3, H, W), then `(value - mean) / std` for each channel; the default leaves them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.data.letterboxes import checked_letterbox, letterboxed
from branchnet.data.npz_files import NpzError, open_npz
from branchnet.errors import DataError
from branchnet.utils.progress import progress_bar

Source = str | os.PathLike[str]
Channels = Sequence[float]

_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_BAR_FROM = 200

# By name: of the other formats that Pillow knows, some start programs (EPS starts Ghostscript), whatever a file's name.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
LONGEST_SIDE = 50
"""So many times as long as the shorter side an image's longer side may be."""


class ImageFolder(Sequence[Tensor]):
    """The images of a folder and its subfolders, in the order of their paths, read each time they are asked for.

    An image is turned as its EXIF orientation says, its shorter side is resized to `size` (bilinear, antialiased), and
    the centre is cut out, as torchvision's `resize` and `center_crop` do. AVIF, BMP, GIF, ICO, JPEG, JPEG 2000, PNG,
    PPM, TGA, TIFF and WebP are read, whichever of them a file is called; files with other suffixes, and hidden ones,
    are ignored. A slice is an `ImageFolder` of fewer files.

    Args:
        folder: the folder.
        size: height and width.
        mean, std: of each channel.
        letterbox: height and width, or one number for both, in place of `size`: the whole image is resized to fit in,
            and what is left on its sides is grey, as detectors of the YOLO family expect it.

    Attributes:
        paths: the files.
        size: height and width; None with a letterbox.
        letterbox: height and width; None without one.
        mean, std: of each channel, as in this module's docstring.

    Raises:
        DataError: no such folder, no images in it, a size below 1, or a `std` that is not positive. Reading an image:
            a file that is damaged, of another format, has more than 8 bits a channel, or one side more than 50 times
            as long as the other; the error names it.
    """

    def __init__(
        self,
        folder: Source,
        *,
        size: int | None = None,
        mean: Channels = _ZERO,
        std: Channels = _ONE,
        letterbox: int | tuple[int, int] | None = None,
    ) -> None:
        self.paths = image_paths(Path(folder))
        self.letterbox = None if letterbox is None else checked_letterbox(letterbox, size)
        self.size = _checked_size(224 if size is None else size) if letterbox is None else None
        self.mean, self.std = _checked_scale(mean, std)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFolder: ...
    def __getitem__(self, index: int | slice) -> Tensor | ImageFolder:
        if isinstance(index, slice):
            chosen = copy.copy(self)
            chosen.paths = self.paths[index]
            return chosen
        pixels = np.moveaxis(_read(self.paths[index], self.letterbox or self.size), -1, 0)
        return torch.from_numpy(_scaled(np.divide(pixels, 255, dtype=np.float32, order="C"), self.mean, self.std))


def load_images(source: Source, *, size: int | None = None, mean: Channels = _ZERO, std: Channels = _ONE) -> Tensor:
    """Read all images of a folder, or of the array `images` in an .npz file.

    The array is (K, H, W), (K, H, W, C) or (K, C, H, W) with C = 1 or 3: uint8 is divided by 255, floats are taken as
    they are. Without a size, an array keeps its own, and a folder's images become 224 x 224.

    Args:
        source: the folder or file.
        size: height and width to resize and crop to.
        mean, std: of each channel: `(value - mean) / std`.

    Returns:
        float32, (K, C, H, W), on the CPU.

    Raises:
        DataError: as `ImageFolder`; a file that is not an .npz, is damaged, has no array `images` of such a form, or
            expands more than 100 times when it is read.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(ImageFolder(path, size=224 if size is None else size, mean=mean, std=std))
    mean, std = _checked_scale(mean, std)
    images = _load_array(path)
    if size is not None:
        images = _resized(images, _checked_size(size), f"{path}: each of 'images'")
    return torch.from_numpy(_scaled(images.numpy(), mean, std))


def load(
    source: Source,
    *,
    size: int | None = None,
    letterbox: int | tuple[int, int] | None = None,
    mean: Channels = _ZERO,
    std: Channels = _ONE,
) -> ImageFolder | Tensor:
    """Images of a folder, read each time they are asked for, or of an .npz file, in memory.

    Args:
        source: the folder or file.
        size: as for `ImageFolder` and `load_images`.
        letterbox: as for `ImageFolder`.
        mean, std: of each channel: `(value - mean) / std`.

    Returns:
        what every function takes as images.

    Raises:
        DataError: as `ImageFolder` and `load_images`; a letterbox for an array.

    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("RGB", (200, 100), "white").save(f"{folder}/wide.png")
    ...     image = branchnet.data.load(folder, letterbox=64)[0]
    >>> image.shape, [round(float(value), 3) for value in image[0, ::21, 32]]
    (torch.Size([3, 64, 64]), [0.447, 1.0, 1.0, 0.447])
    """
    if Path(source).is_dir():
        return ImageFolder(source, size=size, mean=mean, std=std, letterbox=letterbox)
    if letterbox is not None:
        raise DataError(f"{source} is no folder; expected one with letterbox=, whose images have their own sizes")
    return load_images(source, size=size, mean=mean, std=std)


def to_images(values: Tensor | np.ndarray, *, mean: Channels = _ZERO, std: Channels = _ONE) -> Tensor:
    """Convert images in memory to what networks take.

    Args:
        values: (K, H, W), (K, H, W, C) or (K, C, H, W) with C = 1 or 3: uint8 is divided by 255, floats are taken as
            they are.
        mean, std: of each channel: `(value - mean) / std`.

    Returns:
        float32, (K, C, H, W), on the CPU.

    Raises:
        DataError: another form or type, or values that are not finite.
    """
    mean, std = _checked_scale(mean, std)
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return torch.from_numpy(_scaled(_as_images(array, "the array").numpy(), mean, std))


def _load_folder(folder: ImageFolder) -> Tensor:
    images = torch.empty(len(folder), *folder[0].shape)
    with progress_bar("read images", len(folder), shown=len(folder) >= _BAR_FROM) as advance:
        for index, image in enumerate(folder):
            images[index] = image
            advance()
    return images


def image_paths(folder: Path) -> tuple[Path, ...]:
    """The images in a folder and its subfolders, in the order of their paths.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder" if folder.exists() else f"{folder} does not exist")
    from PIL import Image  # here, as below, so that without files of images nothing needs Pillow

    readable = readable_formats()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in readable}
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = sorted(file for file in files if file.suffix.lower() in suffixes and not _hidden(file))
    if not found:
        raise DataError(f"{folder} holds no images; expected files that end in .jpg, .png and so on")
    return tuple(folder / file for file in found)


def _hidden(file: Path) -> bool:
    return any(name.startswith(".") for name in file.parts)


def stored_size(source: Path) -> tuple[int, int]:
    """Height and width of the first image of a folder or of an .npz, from what stands before its pixels.

    Args:
        source: the folder or the file.

    Raises:
        DataError: no image there, or one that cannot be read.
    """
    if source.is_dir():
        from PIL import Image

        path = image_paths(source)[0]
        try:
            with Image.open(path, formats=readable_formats()) as image:
                return image.height, image.width
        except Exception as error:  # Pillow's decoders raise many kinds for damaged files
            raise DataError(f"{path} cannot be read as an image: {error}") from error
    shape = _array_header(source).shape
    height, width = shape[-2:] if len(shape) == 3 or shape[1] in (1, 3) else shape[1:3]
    return height, width


def readable_formats() -> list[str]:
    """The formats that are read, of which an older Pillow, or one built without a library, lacks some."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _read(path: Path, form: int | tuple[int, int] | None) -> np.ndarray:
    """Pixels (H, W, 3) uint8: the central square of a size, or the whole image in a letterbox of a height and width."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=readable_formats()) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has {image.mode} pixels; expected 8 bits a channel")
            _check_sides(image.height, image.width, str(path))
            turned = ImageOps.exif_transpose(image).convert("RGB")
            if isinstance(form, tuple):
                return letterboxed(turned, form)
            size = form or 224
            # Only what the crop shows is resized.
            box = _crop_box(turned.height, turned.width, size)
            fitted = turned.resize((size, size), Image.Resampling.BILINEAR, box=box)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return np.array(fitted)


def _load_array(path: Path) -> Tensor:
    _array_header(path)
    try:
        with open_npz(path) as stored:
            array = stored.read("images")
    except NpzError as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    return _as_images(array, f"{path}: 'images'")


def _array_header(path: Path) -> Any:
    """Shape and type of the images in an .npz file, checked."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        with open_npz(path) as stored:
            header = stored.headers.get("images")
            if header is None:
                names = ", ".join(stored.headers) or "none"
                raise DataError(f"{path} has the arrays {names}; expected one named 'images'")
    except NpzError as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    _check_form(header.shape, header.dtype, f"{path}: 'images'")
    return header


def _as_images(array: np.ndarray, name: str) -> Tensor:
    _check_form(array.shape, array.dtype, name)
    images = torch.from_numpy(np.ascontiguousarray(_channels_first(array), np.float32))
    if array.dtype == np.uint8:
        return images.div_(255)
    if not images.isfinite().all():
        raise DataError(f"{name} has NaN or infinite values; expected finite ones")
    return images


def _check_form(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    if not shape or 0 in shape:
        raise DataError(f"{name} has shape {shape}; expected at least one image, of at least one pixel")
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise DataError(f"{name} is {dtype}; expected uint8 or floating point")
    first, last = len(shape) == 4 and shape[1] in (1, 3), len(shape) == 4 and shape[3] in (1, 3)
    if len(shape) != 3 and first == last:
        which = ", which could be either" if first else ""
        raise DataError(
            f"{name} has shape {shape}{which}; expected (K, H, W), (K, H, W, C) or (K, C, H, W) with C = 1 or 3"
        )


def _channels_first(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        return array[:, None]
    return array if array.shape[1] in (1, 3) else np.moveaxis(array, 3, 1)


def _resized(images: Tensor, size: int, name: str) -> Tensor:
    height, width = images.shape[-2:]
    _check_sides(height, width, name)
    shape, top, left = _fit(height, width, size)
    fitted = images.new_empty(*images.shape[:2], size, size)
    for index, image in enumerate(images):  # one by one: what the crop leaves out can be far larger than the image
        whole = (
            F.interpolate(image[None], shape, mode="bilinear", antialias=True) if shape != (height, width) else image
        )
        fitted[index] = whole[..., top : top + size, left : left + size]
    return fitted


def _check_sides(height: int, width: int, name: str) -> None:
    if max(height, width) > LONGEST_SIDE * min(height, width):
        raise DataError(
            f"{name} is {height} x {width} pixels; expected the longer side at most {LONGEST_SIDE} times the shorter"
        )


def _fit(height: int, width: int, size: int) -> tuple[tuple[int, int], int, int]:
    """Height and width with the shorter side at `size`, and where its central square begins."""
    short = min(height, width)
    height, width = size * height // short, size * width // short
    return (height, width), round((height - size) / 2), round((width - size) / 2)


def _crop_box(height: int, width: int, size: int) -> tuple[float, float, float, float]:
    """What of an image becomes its central square: left, top, right, bottom in its own pixels."""
    (fitted_height, fitted_width), top, left = _fit(height, width, size)
    down, across = height / fitted_height, width / fitted_width
    return left * across, top * down, min((left + size) * across, width), min((top + size) * down, height)


def _scaled(images: np.ndarray, mean: Channels, std: Channels) -> np.ndarray:
    if (mean, std) == (_ZERO, _ONE):
        return images
    if images.shape[-3] != len(mean):
        raise DataError(f"mean and std have {len(mean)} numbers; expected {images.shape[-3]}, one for each channel")
    middle, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    return np.asarray((images - middle) / spread)


def _checked_size(size: int) -> int:
    if size < 1:
        raise DataError(f"the size of images is {size}; expected 1 or more")
    return size


def _checked_scale(mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise DataError(f"mean={tuple(mean)}, std={tuple(std)}; expected one number a channel each, and std above 0")
    return tuple(mean), tuple(std)
