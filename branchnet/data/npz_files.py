"""Reading .npz and .npy content of anyone: what a header says can be compared before data are unpacked."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

MAX_EXPANSION = 100
"""So many times its own size a file may take in memory; numbers that were measured compress far less."""
SMALL = 2**28
"""Bytes that a file may always take in memory."""


class NpzError(ValueError):
    """A file that is no .npz file or is damaged, or an array that expands beyond all measure."""


@dataclass(frozen=True)
class ArrayHeader:
    """What a file says about an array: its shape and its type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzReader:
    """The arrays of an open file.

    Attributes:
        headers: what each array is, by name; no data are unpacked for it.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._limit = max(SMALL, MAX_EXPANSION * size)
        self.headers: Mapping[str, ArrayHeader] = {
            entry.filename.removesuffix(".npy"): self._header(entry) for entry in archive.infolist()
        }

    def _header(self, entry: zipfile.ZipInfo) -> ArrayHeader:
        with _naming(entry.filename), self._archive.open(entry) as file:
            if not entry.filename.endswith(".npy"):
                raise NpzError("it is no array")
            header = _read_header(file)
            if not header.dtype.hasobject and entry.file_size != file.tell() + header.nbytes:
                raise NpzError(f"{entry.file_size} bytes do not hold {header.shape} {header.dtype}")
            return header

    def read(self, name: str) -> npt.NDArray[Any]:
        """Unpack an array.

        Args:
            name: one of the headers' names.

        Raises:
            NpzError: data that are damaged, are Python objects, or expand more than 100 times to more than 256 MiB.
        """
        if (unpacked := self.headers[name].nbytes) > self._limit:
            raise NpzError(
                f"{name} would expand to {unpacked:,} bytes; expected at most {MAX_EXPANSION} times the file's size "
                "(write arrays that compress so well with np.savez)"
            )
        with _naming(name), self._archive.open(f"{name}.npy") as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            file.read()  # the archive compares its checksum at the end
            return array


@contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[NpzReader]:
    """Open a file to read headers and arrays.

    Args:
        path: the file.

    Yields:
        Its arrays.

    Raises:
        NpzError: it is no .npz file, or damaged.
        FileNotFoundError: no such file.
    """
    with Path(path).open("rb") as file:
        with _naming("the archive"):
            archive = zipfile.ZipFile(file)
            reader = NpzReader(archive, Path(path).stat().st_size)
        with archive:
            yield reader


def read_npy(content: bytes) -> npt.NDArray[Any]:
    """Read an array that `np.save` wrote.

    Args:
        content: all of the file.

    Raises:
        NpzError: it is no array, or data that do not fit its header.
    """
    with _naming("the array"):
        file = io.BytesIO(content)
        header = _read_header(file)
        if header.dtype.hasobject or len(content) != file.tell() + header.nbytes:
            raise NpzError(f"{len(content)} bytes do not hold {header.shape} {header.dtype}")
        file.seek(0)
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _read_header(file: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise NpzError(f"an array in format {version}; expected (1, 0) or (2, 0)")
    if any(size < 0 for size in shape):
        raise NpzError(f"a shape of {shape}; expected no negative sizes")
    return ArrayHeader(shape, dtype)


@contextmanager
def _naming(part: str) -> Iterator[None]:
    try:
        yield
    except NpzError as error:
        raise NpzError(f"{part}: {error}") from error
    except Exception as error:  # zipfile, its decompressors and numpy raise many kinds for damaged files
        raise NpzError(f"{part}: {error or type(error).__name__}") from error
