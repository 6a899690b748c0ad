"""Arrays are read as NumPy reads them, or refused by what their headers say."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from branchnet.data.npz_files import NpzError, open_npz, read_npy
from tests.damage import damaged

KINDS = arrays.floating_dtypes() | arrays.unsigned_integer_dtypes() | arrays.complex_number_dtypes()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, min_side=0)))
def test_what_numpy_wrote_comes_back(array: np.ndarray) -> None:
    found = read_npy(npy(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the array"),
        (npy(np.zeros(3))[:-1], "do not hold"),
        (npy(np.zeros(3)) + b"x", "do not hold"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9,)"), "do not hold"),
        (npy(np.zeros(33)).replace(b"(33,)", b"(-3,)"), "no negative sizes"),
        (npy(np.array([None])), "do not hold"),
        (npy(np.zeros(3)).replace(b"NUMPY\x01", b"NUMPY\x07"), "the array"),
    ],
)
def test_what_is_no_array_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(NpzError, match=message):
        read_npy(content)


def test_damaged_arrays_raise_nothing_else() -> None:
    original = np.arange(12.0).reshape(3, 4)
    for content in damaged(npy(original), 500):
        try:
            found = read_npy(content)
        except NpzError:
            continue
        assert found.nbytes <= len(content)


def test_an_archive_of_other_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("values", npy(np.zeros(3)))
    with pytest.raises(NpzError, match="it is no array"), open_npz(tmp_path / "a.npz"):
        pass


def test_a_header_that_asks_for_more_than_is_stored_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("values.npy", npy(np.zeros(300)).replace(b"(300,)", b"(999,)"))
    with pytest.raises(NpzError, match=r"values\.npy: .* do not hold"), open_npz(tmp_path / "a.npz"):
        pass
