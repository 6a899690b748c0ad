"""The result: what it refuses, files and tables."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from branchnet.affinity import Affinity, Reliability
from branchnet.clustering import search
from branchnet.errors import AffinityError
from branchnet.stages.costs import StageCost, StageCosts


def random_affinity(tasks: int, depth: int, *, directed: bool = False, seed: int = 0) -> Affinity:
    values = np.random.default_rng(seed).uniform(0, 1, (depth, tasks, tasks))
    if not directed:
        values = (values + values.swapaxes(1, 2)) / 2
        values[:, range(tasks), range(tasks)] = 1
    names = [f"Attribute_{index:02d}" for index in range(tasks)]
    return Affinity(names, [f"layer{d}" for d in range(depth)], values, directed=directed)


def test_frozen_through_and_through() -> None:
    affinity = random_affinity(3, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        affinity.measure = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        affinity.values[0, 0, 0] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["a", "a"]}, r"tasks repeats \['a'\]"),
        ({"tasks": "ab"}, "a sequence of non-empty strings"),
        ({"tasks": ["a", ""]}, "non-empty"),
        ({"locations": ["x", "y"]}, r"\(2, 2, 2\)"),
        ({"values": np.full((1, 2, 2), np.nan)}, "affinity of 'a' and 'a' at 'x' is not finite"),
        ({"standard_errors": np.zeros((1, 2))}, "standard_errors has shape"),
        ({"samples": np.zeros((5, 2, 2))}, "samples has shape"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    arguments = {"tasks": ["a", "b"], "locations": ["x"], "values": np.eye(2)[None]} | change
    with pytest.raises(AffinityError, match=message):
        Affinity(**arguments)


def test_files_without_pickle(tmp_path: Path) -> None:
    reliability = Reliability(np.full((2, 3), 0.9), np.array([0.2, 0.8]))
    affinity = dataclasses.replace(random_affinity(3, 2), reliability=reliability, measure="rsa ✓")
    affinity.save(tmp_path / "deep" / "a.npz")
    with np.load(tmp_path / "deep" / "a.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    loaded = Affinity.load(tmp_path / "deep" / "a.npz")
    assert loaded.measure == "rsa ✓"
    assert loaded.standard_errors is None
    np.testing.assert_array_equal(loaded.reliability.seed_correlation, [0.2, 0.8])
    assert loaded.reliability.noise(loaded.locations) == ("layer0",)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04broken"])
def test_damaged_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(AffinityError, match=r"a\.npz is not an affinity file"):
        Affinity.load(tmp_path / "a.npz")


def test_pickled_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", values=np.array([{}], dtype=object))
    with pytest.raises(AffinityError, match="not an affinity file"):
        Affinity.load(tmp_path / "a.npz")


def test_other_arrays_are_no_affinity(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", values=np.eye(3))
    with pytest.raises(AffinityError, match="not an affinity file"):
        Affinity.load(tmp_path / "a.npz")


def test_symmetric_and_rows() -> None:
    affinity = random_affinity(3, 2, directed=True)
    both = affinity.symmetric()
    assert not both.directed
    np.testing.assert_array_equal(both.values, both.values.swapaxes(1, 2))
    assert len(affinity.rows()) == 2 * 6
    assert len(both.rows()) == 2 * 3
    record = affinity.rows()[0]
    assert record["affinity"] == affinity.values[0, 0, 1]
    assert (record["task_i"], record["task_j"]) == ("Attribute_00", "Attribute_01")


def test_other_locations_are_refused() -> None:
    affinity = random_affinity(3, 2)
    affinity.check_locations(("layer0", "layer1"), "the costs")
    dataclasses.replace(affinity, locations=("stage 0", "stage 1")).check_locations(("a", "b"), "the costs")
    with pytest.raises(AffinityError, match="stage 1 ends at 'layer1' in the affinity, at 'block7' in the costs"):
        affinity.check_locations(("layer0", "block7"), "the costs")
    costs = StageCosts(tuple(StageCost(name, 5, 5, 5) for name in ("layer0", "block7")))
    with pytest.raises(AffinityError, match="'block7' in the costs"):
        search(affinity, costs, 100)


def test_dataframe() -> None:
    pytest.importorskip("pandas")
    frame = random_affinity(4, 3).to_dataframe()
    assert list(frame.columns) == ["location", "task_i", "task_j", "affinity"]
    assert len(frame) == 3 * 6


def test_dataframe_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(AffinityError, match=r"pip install 'branchnet\[tables\]', or use rows"):
        random_affinity(2, 1).to_dataframe()


def test_the_result_needs_no_torch() -> None:
    rooms = "branchnet.affinity.tensor, branchnet.reporting.plots.affinity_plot, branchnet.reporting.plots.depth_plot"
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
