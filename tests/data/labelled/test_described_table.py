"""Folders and tables of one's own, described by YAML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from branchnet.data import LabelledTable
from branchnet.errors import DataError
from branchnet.training import standard_losses, standard_metrics
from tests.data.labelled.made_layouts import picture, pixels, text

IMAGES = """
images: photos
table: labels.csv
split_column: split
tasks:
  scene: {kind: classification, column: scene, classes: [kitchen, street]}
  age: {kind: regression, column: age, unit: years}
  harm: {kind: binary, columns: [heart, liver]}
  depth: {kind: depth, folder: depth, scale: 0.001, missing: 0, unit: m}
  parts: {kind: segmentation, folder: parts, column: parts, classes: 3}
  normals: {kind: normals, folder: normals, suffix: .npy, partial: true}
"""
ROWS = """image,split,scene,age,heart,liver,parts
a.png,train,street,31.5,1,,a_parts.png
sub/b.png,train,,,,,
c.png,test,kitchen,7,no,yes,c_parts.png
"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "sub/b", "c")):
        picture(tmp_path / "photos" / f"{name}.png", seed, 4, 6)
        depth = np.full((4, 6), 1500, np.uint16)
        depth[0] = 0
        pixels(tmp_path / "depth" / f"{name}.png", depth)
    for name in ("a", "c"):
        pixels(tmp_path / "parts" / f"{name}_parts.png", np.full((2, 3), 2, np.uint8))
    (tmp_path / "normals").mkdir()
    np.save(tmp_path / "normals" / "c.npy", np.full((4, 6, 3), 2.0))
    text(tmp_path / "labels.csv", ROWS)
    text(tmp_path / "data.yaml", IMAGES)
    return tmp_path / "data.yaml"


def test_columns_and_files_are_read_and_empty_cells_are_missing(described: Path) -> None:
    data = LabelledTable(described, "train")
    assert list(data.names) == ["a.png", "sub/b.png"]
    image, labels = data[0]
    assert image.shape == (3, 4, 6)
    assert int(labels["scene"]) == 1  # type: ignore[arg-type]
    assert labels["age"].tolist() == [31.5]  # type: ignore[union-attr]
    assert labels["harm"][0] == 1  # type: ignore[index]
    assert bool(labels["harm"][1].isnan())  # type: ignore[index]
    depth = labels["depth"]
    assert depth is not None
    assert bool(depth[0, 0].isnan().all())
    assert depth[0, 1:].unique().tolist() == pytest.approx([1.5])
    assert labels["parts"].shape == (4, 6), "brought to the image's size"  # type: ignore[union-attr]
    assert labels["normals"] is None
    missing = data[1][1]
    assert [task for task, label in missing.items() if label is None] == ["scene", "age", "harm", "parts", "normals"]


def test_forms_say_what_the_labels_are(described: Path) -> None:
    data = LabelledTable(described, "test")
    assert {task: form.channels for task, form in data.label_forms.items()} == {
        "scene": 2,
        "age": 1,
        "harm": 2,
        "depth": 1,
        "parts": 3,
        "normals": 3,
    }
    assert data.label_forms["parts"].ignore == 255
    assert data[0][1]["normals"].norm(dim=0).unique().tolist() == pytest.approx([1])  # type: ignore[union-attr]
    assert set(standard_losses(data)) == set(standard_metrics(data)) == set(data.label_forms)


def test_a_split_must_be_named_where_there_are_some(described: Path) -> None:
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\]; expected split="):
        LabelledTable(described)
    with pytest.raises(DataError, match="split='val'; expected one of"):
        LabelledTable(described, "val")


def test_lists_of_names_are_splits_and_must_not_overlap(described: Path) -> None:
    folder = described.parent
    text(
        described,
        "images: photos\nsplits: {train: train.txt, test: test.txt}\ntasks: {d: {kind: depth, folder: depth}}\n",
    )
    text(folder / "train.txt", "a.png\nsub/b.png\n")
    text(folder / "test.txt", "c.png\n")
    assert list(LabelledTable(described, "test").names) == ["c.png"]
    text(folder / "test.txt", "c.png\na.png\n")
    with pytest.raises(DataError, match=r"'a\.png' is in train\.txt and in test\.txt"):
        LabelledTable(described, "train")
    text(folder / "test.txt", "d.png\n")
    with pytest.raises(DataError, match=r"test\.txt names 'd\.png', which is not there"):
        LabelledTable(described, "test")


def test_numbers_of_a_table_are_inputs(tmp_path: Path) -> None:
    text(tmp_path / "t.csv", "x,y,kind\n1,2,0\n3,4,\n")
    text(
        tmp_path / "t.yaml",
        "inputs: [x, y]\ntable: t.csv\ntasks: {kind: {kind: classification, column: kind, classes: 4}}\n",
    )
    data = LabelledTable(tmp_path / "t.yaml")
    assert data[0][0].tolist() == [1, 2]
    assert int(data[0][1]["kind"]) == 0  # type: ignore[arg-type]
    assert data[1][1]["kind"] is None
    assert data.split is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("kind: depth,", "kind: deep,"), "tasks.depth.kind: Input should be"),
        (("unit: m}", "units: m}"), "tasks.depth.units: Extra inputs are not permitted"),
        (("images: photos\n", ""), "expected `images`, a folder, or `inputs`"),
        (("column: scene, ", ""), "tasks.scene: expected either `column` or `columns`"),
        (("folder: depth, ", ""), "tasks.depth: kind 'depth' has a label at each pixel; expected `folder`"),
        ((", classes: 3", ""), "tasks.parts: kind 'segmentation' needs `classes`"),
        (("kind: classification, column", "kind: depth, folder: depth, colum"), "Extra inputs"),
        (("table: labels.csv\nsplit_column: split\n", ""), "tasks.scene: it names a column; expected `table`"),
        (("tasks:", "tasks: ["), "cannot be read as YAML"),
    ],
)
def test_a_wrong_description_is_named(described: Path, change: tuple[str, str], problem: str) -> None:
    text(described, IMAGES.replace(*change))
    with pytest.raises(DataError) as caught:
        LabelledTable(described, "train")
    assert problem in str(caught.value)
    assert str(described) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("street", "garden"), "row 2 (a.png), column 'scene': 'garden'; expected one of kitchen, street"),
        (("31.5", "old"), "column 'age': 'old'; expected a finite number"),
        (("1,,a_parts", "2,,a_parts"), "column 'heart': '2'; expected 0 or 1"),
        (("a_parts.png", "z.png"), "z.png does not exist; expected an image of labels"),
        (("image,split", "picture,split"), "lacks ['image']"),
        (("sub/b.png", "a.png"), "names the image 'a.png' twice"),
    ],
)
def test_a_wrong_cell_is_named(described: Path, change: tuple[str, str], problem: str) -> None:
    text(described.parent / "labels.csv", ROWS.replace(*change))
    with pytest.raises(DataError) as caught:
        LabelledTable(described, "train")[0]
    assert problem in str(caught.value)


def test_a_map_of_another_form_is_refused(described: Path) -> None:
    np.save(described.parent / "normals" / "a.npy", np.zeros((4, 6)))
    with pytest.raises(DataError, match=r"a\.npy has shape \(4, 6\); expected 3 channels"):
        LabelledTable(described, "train")[0]
    pixels(described.parent / "parts" / "a_parts.png", np.zeros((4, 6, 3), np.uint8))
    (described.parent / "normals" / "a.npy").unlink()
    with pytest.raises(DataError, match="expected whole numbers"):
        LabelledTable(described, "train")[0]
    assert torch.is_tensor(LabelledTable(described, "test")[0][0])


def test_a_class_beyond_the_described_ones_is_refused(described: Path) -> None:
    pixels(described.parent / "parts" / "a_parts.png", np.full((4, 6), 3, np.uint8))
    with pytest.raises(DataError, match=r"a_parts\.png holds the class 3; expected 0 to 2, or 255"):
        LabelledTable(described, "train")[0]
