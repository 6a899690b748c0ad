"""Files of labels: images whose pixels are numbers, arrays of NumPy and of MATLAB, lists of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchnet.data.images import readable_formats
from branchnet.errors import DataError

Result = TypeVar("Result")
Array = npt.NDArray[Any]


def read_rgb(path: Path) -> Tensor:
    """Read a picture as float32 (3, H, W) in [0, 1], at its own size, turned as its EXIF orientation says.

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    pixels = _read(path, "an image", lambda: _pixels(path, "RGB"))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float() / 255


def read_pixels(path: Path) -> Array:
    """Read an image whose pixels are labels, (H, W) or (H, W, C), as they are stored: palette indices, 8 or 16 bits.

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    return _read(path, "an image of labels", lambda: _pixels(path, None))


def read_array(path: Path) -> Array:
    """Read an .npy file.

    Raises:
        DataError: the file is missing, damaged, or holds objects.
    """
    return _read(path, "an .npy file", lambda: np.load(path, allow_pickle=False))


def read_matlab(path: Path) -> dict[str, Any]:
    """Read a MATLAB file (of version 7 or older).

    Raises:
        DataError: the file is missing or damaged.
    """
    from scipy.io import loadmat

    return _read(path, "a MATLAB file", lambda: loadmat(path))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: the file is missing, empty, or not UTF-8.
    """
    text = _read(path, "a text file", lambda: path.read_text(encoding="utf-8-sig"))
    if not text.strip():
        raise DataError(f"{path} is empty; expected text")
    return text


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty, without space around them.

    Raises:
        DataError: the file is missing, empty, or not UTF-8.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def existing_folder(path: Path) -> Path:
    """`path`, if it is a folder.

    Raises:
        DataError: it is not.
    """
    if not path.is_dir():
        raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}; expected a folder")
    return path


def _pixels(path: Path, mode: str | None) -> Array:
    from PIL import Image, ImageOps

    with Image.open(path, formats=readable_formats()) as image:
        return np.array(image if mode is None else ImageOps.exif_transpose(image).convert(mode))


def _read(path: Path, what: str, read: Callable[[], Result]) -> Result:
    if not path.exists():
        raise DataError(f"{path} does not exist; expected {what}")
    try:
        return read()
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DataError(f"{path} cannot be read as {what}: {error}") from error
