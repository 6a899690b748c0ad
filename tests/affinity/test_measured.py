"""Measured pair tables: the published ones, and tables that cannot be right."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest

from branchnet.affinity import PairMeasurements, measured_affinity
from branchnet.errors import AffinityError

# Two-task results of TreeMTL (github.com/zhanglijun95/TreeMTL, folder 2task), NYUv2 and Taskonomy.
TABLES = Path(__file__).parents[1] / "facts" / "treemtl_two_task_tables.csv"


def records() -> list[dict[str, str]]:
    with TABLES.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == "NYUv2_mobilenet_0227"]


def test_every_published_number_is_in_its_place() -> None:
    with TABLES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for table, count in {"NYUv2_mobilenet_0227": 3, "NYUv2_resnet_1129": 3, "Taskonomy_resnet_0123": 5}.items():
        affinity = measured_affinity(TABLES, table=table)
        assert affinity.values.shape == (5, count, count)
        assert affinity.directed
        for row in rows:
            point = int(row["branch_point"])
            if row["table"] == table and point:
                measured = row["task_measured"]
                other = row["task_b"] if measured == row["task_a"] else row["task_a"]
                i, j = affinity.tasks.index(other), affinity.tasks.index(measured)
                assert affinity.values[point - 1, i, j] == float(row["rel_perf_percent"])
        assert (affinity.values[:, range(count), range(count)] == 0).all()


def test_names_and_order() -> None:
    names = {"2": "normals", "0": "segmentation", "1": "depth"}
    affinity = measured_affinity(TABLES, table="NYUv2_mobilenet_0227", tasks=names, locations="abcde")
    plain = measured_affinity(TABLES, table="NYUv2_mobilenet_0227")
    assert affinity.tasks == ("normals", "segmentation", "depth")
    assert affinity.locations == tuple("abcde")
    assert affinity.values[3, 0, 2] == plain.values[3, 2, 1]


def test_several_tables_must_be_chosen_from() -> None:
    with pytest.raises(AffinityError, match="several tables; expected table= with one of"):
        measured_affinity(TABLES)
    with pytest.raises(AffinityError, match="unknown table 'mine'"):
        measured_affinity(TABLES, table="mine")


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (4, None, "the result of task '0' with '1' at branch point 4 is missing"),
        (4, {"rel_perf_percent": "nan"}, "result 5 of the table is .*finite change"),
        (4, {"rel_perf_percent": "good"}, "result 5 of the table"),
        (4, {"task_measured": "2"}, "expected two tasks, one of them measured"),
        (4, {"branch_point": "3"}, "repeats"),
        (0, {"rel_perf_percent": "1.5"}, "changes by 1.5 at branch point 0"),
    ],
)
def test_faulty_tables(position: int, change: dict[str, str] | None, message: str) -> None:
    rows = records()
    if change is None:
        del rows[position]
    else:
        rows[position] |= change
    with pytest.raises(AffinityError, match=message):
        measured_affinity(rows)


def test_missing_columns_and_empty_tables() -> None:
    with pytest.raises(AffinityError, match=r"no column \['branch_point'\]"):
        measured_affinity([{key: value for key, value in row.items() if key != "branch_point"} for row in records()])
    with pytest.raises(AffinityError, match="empty"):
        measured_affinity([])
    with pytest.raises(AffinityError, match=r"tasks is \['0', '1'\]; expected those of the table, \['0', '1', '2'\]"):
        measured_affinity(records(), tasks=["0", "1"])


def test_measurements_name_their_axes() -> None:
    pairs = PairMeasurements.read(TABLES, name="NYUv2_mobilenet_0227")
    assert pairs.gain.shape == (6, 3, 3) and not pairs.gain[0].any()
    with TABLES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] == "NYUv2_mobilenet_0227":
                task = row["task_measured"]
                partner = row["task_b"] if task == row["task_a"] else row["task_a"]
                place = int(row["branch_point"]), pairs.tasks.index(task), pairs.tasks.index(partner)
                assert pairs.gain[place] == float(row["rel_perf_percent"])
    affinity = pairs.affinity()
    np.testing.assert_array_equal(affinity.values, pairs.gain[1:].transpose(0, 2, 1))
    np.testing.assert_array_equal(affinity.values, measured_affinity(TABLES, table="NYUv2_mobilenet_0227").values)


def test_a_table_without_the_slice_of_nothing_shared_is_refused() -> None:
    gain = PairMeasurements.read(TABLES, name="NYUv2_mobilenet_0227").gain
    with pytest.raises(AffinityError, match=r"at branch point 0 is .*a table without that slice needs zeros in front"):
        PairMeasurements(["a", "b", "c"], gain[1:])


def test_similarities_are_no_gains() -> None:
    similar = np.stack([np.zeros((2, 2)), np.array([[1.0, 0.5], [0.5, 1.0]])])
    with pytest.raises(AffinityError, match="a task with itself is 1"):
        PairMeasurements(["a", "b"], similar)
    with pytest.raises(AffinityError, match="distinct names"):
        PairMeasurements(["a", "a"], np.zeros((2, 2, 2)))
    with pytest.raises(AffinityError, match="one location less"):
        PairMeasurements(["a", "b"], np.zeros((3, 2, 2)), ("first",))


def test_fractions_are_told_from_percent() -> None:
    gain = np.zeros((2, 2, 2))
    gain[1, 0, 1] = 0.05
    with pytest.warns(UserWarning, match="no measured change is over 0.05 percent; if these are fractions"):
        unsure = PairMeasurements(["a", "b"], gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PairMeasurements(["a", "b"], gain, unit="fraction").gain[1, 0, 1] == 5.0
        assert PairMeasurements(["a", "b"], gain, unit="percent").gain[1, 0, 1] == unsure.gain[1, 0, 1] == 0.05
        PairMeasurements(["a", "b"], np.zeros((2, 2, 2)))
    with pytest.raises(AffinityError, match="1200 percent; expected unit='percent'"):
        PairMeasurements(["a", "b"], 240 * gain, unit="fraction")
    with pytest.raises(AffinityError, match="unit is 'permille'"):
        PairMeasurements(["a", "b"], gain, unit="permille")
