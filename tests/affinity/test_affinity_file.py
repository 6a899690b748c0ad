"""Files of affinities: of every NumPy, and of anyone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from branchnet.affinity import Affinity, Reliability
from branchnet.data import npz_files
from branchnet.errors import AffinityError, BranchnetError
from tests.damage import damaged


def full_affinity() -> Affinity:
    values = np.random.default_rng(0).uniform(0, 1, (2, 3, 3))
    reliability = Reliability(np.full((2, 3), 0.9), np.array([np.nan, 0.8]))
    return Affinity(
        ["a", "b", "c"], ["x", "y"], values, "rsa", values / 10, "hash", np.stack([values] * 4), reliability, True
    )


def stored(**changes: Any) -> dict[str, np.ndarray]:
    """The arrays of a file of `full_affinity`, some of them, or of its description's entries, exchanged or added."""
    affinity = full_affinity()
    text = {
        "format": 1,
        "tasks": affinity.tasks,
        "locations": affinity.locations,
        "measure": "rsa",
        "probe_hash": None,
        "directed": False,
        "reliability": None,
    }
    arrays: dict[str, np.ndarray] = {"values": affinity.values}
    for name, change in changes.items():
        (arrays if isinstance(change, np.ndarray) else text)[name] = change
    arrays.setdefault("description", np.frombuffer(json.dumps(text).encode(), np.uint8))
    return arrays


def test_everything_comes_back(tmp_path: Path) -> None:
    affinity = full_affinity()
    affinity.save(tmp_path / "a.npz")
    loaded = Affinity.load(tmp_path / "a.npz")
    for field in dataclasses.fields(Affinity):
        if field.name != "reliability":
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(affinity, field.name))
    np.testing.assert_array_equal(loaded.reliability.ceiling, affinity.reliability.ceiling)
    np.testing.assert_array_equal(loaded.reliability.seed_correlation, affinity.reliability.seed_correlation)
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file.files) == ["description", "samples", "standard_errors", "values"]


def test_a_file_written_with_an_older_numpy_is_read(tmp_path: Path) -> None:
    """NumPy before 2.2 stored `savez_compressed(..., allow_pickle=False)` as an array of that name."""
    np.savez_compressed(tmp_path / "a.npz", **stored(allow_pickle=np.array(False)))
    np.testing.assert_array_equal(Affinity.load(tmp_path / "a.npz").values, full_affinity().values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "has the keys"),
        ({"tasks": "abc"}, "tasks is of type str; expected list"),
        ({"tasks": ["a", "b"]}, r"values is \(2, 3, 3\) float64; expected \(2, 2, 2\) float64"),
        ({"tasks": [1, 2, 3]}, "non-empty strings"),
        ({"tasks": ["a", "a", "b"]}, "repeats"),
        ({"directed": 1}, "directed is of type int"),
        ({"format": 2}, "written in format 2; expected 1"),
        ({"format": True}, "written in format True"),
        ({"reliability": {}}, "its reliability is of another form"),
        ({"reliability": {"ceiling": [[1, 2], [3]], "seed_correlation": None}}, "its reliability is of another form"),
        ({"reliability": {"ceiling": "x", "seed_correlation": None}}, "its reliability is of another form"),
        ({"other": np.eye(2)}, "it holds the arrays"),
        ({"values": np.zeros((2, 3, 3), np.int64)}, "int64; expected"),
        ({"samples": np.zeros((4, 2, 3, 2))}, "samples is"),
        ({"samples": np.full((1, 2, 3, 3), np.inf)}, "not finite"),
        ({"description": np.frombuffer(b"[" * 100_000, np.uint8)}, "description is no JSON"),
        ({"description": np.frombuffer(b"[]", np.uint8)}, "description is no mapping"),
        ({"description": np.zeros(2**24 + 1, np.uint8)}, "bytes; expected at most"),
    ],
)
def test_crafted_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez_compressed(tmp_path / "a.npz", **stored(**changes))
    with pytest.raises(AffinityError, match=message):
        Affinity.load(tmp_path / "a.npz")


def test_headers_are_compared_before_data_are_unpacked(tmp_path: Path) -> None:
    """The data of `samples` are damaged, and yet it is the shape in the header that is complained of."""
    samples = np.random.default_rng(1).random((5000, 2, 3, 3))
    for tasks, message in ((["a", "b"], r"samples is \(5000, 2, 3, 3\)|values is"), (["a", "b", "c"], "CRC")):
        np.savez(tmp_path / "a.npz", **stored(samples=samples, tasks=tasks))
        content = (tmp_path / "a.npz").read_bytes()
        data = samples[2500:2510].tobytes()
        assert content.count(data) == 1
        (tmp_path / "a.npz").write_bytes(content.replace(data, bytes(len(data))))
        with pytest.raises(AffinityError, match=message):
            Affinity.load(tmp_path / "a.npz")


def test_a_small_file_that_expands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_files, "SMALL", 10_000)
    np.savez_compressed(tmp_path / "a.npz", **stored(samples=np.zeros((20_000, 2, 3, 3))))
    with pytest.raises(AffinityError, match=r"would expand to 2,88\d,\d\d\d bytes; expected at most 100 times"):
        Affinity.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **stored(samples=np.zeros((20_000, 2, 3, 3))))
    assert len(Affinity.load(tmp_path / "a.npz").replicates()) == 20_000


def damaged_files_are_refused(folder: Path, count: int) -> None:
    full_affinity().save(folder / "a.npz")
    np.savez(folder / "plain.npz", **np.load(folder / "a.npz"))
    for name in ("a.npz", "plain.npz"):
        refused = 0
        for content in damaged((folder / name).read_bytes(), count):
            (folder / "damaged.npz").write_bytes(content)
            try:
                Affinity.load(folder / "damaged.npz")
            except BranchnetError:
                refused += 1
        assert refused > 0.7 * count


def test_damaged_files_raise_only_our_error(tmp_path: Path) -> None:
    damaged_files_are_refused(tmp_path, 150)


@pytest.mark.slow
def test_thousands_of_damaged_files_raise_only_our_error(tmp_path: Path) -> None:
    damaged_files_are_refused(tmp_path, 5000)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffinityError, match=r"none\.npz does not exist; expected a file of Affinity\.save"):
        Affinity.load(tmp_path / "none.npz")
    with pytest.raises(AffinityError, match=r"cannot be read: .* expected a file of"):
        Affinity.load(tmp_path)
