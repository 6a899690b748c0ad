"""Thousands of damaged cache entries: each is computed again, and none is taken for something that it is not."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from branchnet.affinity import rsa
from branchnet.affinity.features.feature_cache import Cache
from branchnet.errors import AffinityError
from tests.affinity.toys import images, small_cnn
from tests.damage import damaged

SIGNATURE = np.random.default_rng(0).random(66).astype(np.float32)


def sealed(array: bytes) -> bytes:
    """An entry whose checksum fits."""
    return hashlib.blake2b(array, digest_size=32).digest() + array


def stored() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, SIGNATURE)
    return buffer.getvalue()


def damaged_entries(count: int) -> Iterator[bytes]:
    return damaged(sealed(stored()), count)


def sealed_entries(count: int) -> Iterator[bytes]:
    """Damage that the checksum does not show, as somebody could have made it."""
    return map(sealed, damaged(stored(), count))


KINDS: dict[str, Callable[[int], Iterator[bytes]]] = {"damaged": damaged_entries, "sealed": sealed_entries}


def entries_are_refused_or_of_the_wanted_form(folder: Path, kind: str, count: int) -> None:
    cache = Cache(folder, ("key",))
    cache.write(0, "rdm", SIGNATURE)
    (entry,) = folder.iterdir()
    assert entry.read_bytes() == sealed(stored())  # what is damaged here is what is written
    np.testing.assert_array_equal(cache.read(0, "rdm", SIGNATURE.shape), SIGNATURE)
    refused = 0
    for content in KINDS[kind](count):
        entry.write_bytes(content)
        found = cache.read(0, "rdm", SIGNATURE.shape)
        refused += found is None
        assert found is None or (kind == "sealed" and found.shape == SIGNATURE.shape and found.dtype.kind == "f")
    assert refused == count if kind == "damaged" else refused > count // 4


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_entries_are_refused(tmp_path: Path, kind: str) -> None:
    entries_are_refused_or_of_the_wanted_form(tmp_path, kind, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_damaged_entries(tmp_path: Path, kind: str) -> None:
    entries_are_refused_or_of_the_wanted_form(tmp_path, kind, 5000)


def test_a_run_on_damaged_entries_gives_what_a_run_without_them_gives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    reference = rsa(networks, images(12), cache=tmp_path, bootstrap=0)
    entries = sorted(tmp_path.glob("*.rdm"))
    whole = [entry.read_bytes() for entry in entries]
    for entry, content in zip(entries, whole, strict=True):
        entry.write_bytes(next(damaged(content, 1, seed=len(entry.name))))
    with caplog.at_level(logging.WARNING, "branchnet"):
        again = rsa(networks, images(12), cache=tmp_path, bootstrap=0)
    np.testing.assert_array_equal(again.values, reference.values)
    assert all(f"{entry} is damaged" in caplog.text for entry in entries)
    assert [entry.read_bytes() for entry in entries] == whole


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ("key",))
    cache.write(0, "rdm", SIGNATURE)
    (entry,) = tmp_path.iterdir()
    entry.unlink()
    entry.mkdir()
    with pytest.raises(AffinityError, match=r"key-rdm\.rdm cannot be read"):
        cache.read(0, "rdm", SIGNATURE.shape)
