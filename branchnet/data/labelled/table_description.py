"""The YAML file that describes a folder or table of one's own: where the inputs are, and the labels of each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from branchnet.data.labelled.label_files import read_text
from branchnet.data.labelled.label_forms import PIXELWISE, LabelForm, LabelKind
from branchnet.errors import DataError
from branchnet.utils.document_keys import show_keys


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskDescription(_Strict):
    """The labels of one task."""

    kind: LabelKind = Field(description="What they say.")
    column: str | None = Field(
        None, description="The column of the table that holds the label, or the name of its file."
    )
    columns: tuple[str, ...] = Field((), description="Several columns, of numbers or of yes and no.")
    folder: str | None = Field(None, description="The folder of files of labels, one for each image.")
    suffix: str = Field(".png", description="How these files end: .png or another image, or .npy.")
    classes: int | tuple[str, ...] | None = Field(None, description="How many classes, or their names.")
    channels: int = Field(1, description="Channels of a map.", ge=1)
    ignore: int | None = Field(None, description="A class that marks a missing label.")
    scale: float = Field(1.0, description="What numbers in files are multiplied by.")
    missing: float | None = Field(None, description="The number in files that marks a missing label, before scaling.")
    partial: bool = Field(False, description="Whether a file that is not there is a missing label and no error.")
    unit: str = Field("", description="Of numbers, for the names of metrics.")

    @property
    def form(self) -> LabelForm:
        """What the labels are."""
        names, number = (self.classes, 0) if isinstance(self.classes, tuple) else ((), self.classes or 1)
        channels = {"normals": 3, "offsets": 2}.get(self.kind, self.channels)
        if self.kind in ("classification", "segmentation"):
            channels = len(names) or number
        elif self.kind in ("regression", "binary"):
            channels = len(self.columns) or 1
            names = self.columns
        ignore = 255 if self.kind == "segmentation" and self.ignore is None else self.ignore
        return LabelForm(self.kind, channels, ignore, self.unit, names)


class TableDescription(_Strict):
    """A whole description."""

    images: str | None = Field(None, description="The folder of images.")
    inputs: tuple[str, ...] = Field((), description="Columns of numbers that are the input, in place of images.")
    table: str | None = Field(None, description="A CSV file; its column `image` names the images.")
    split_column: str | None = Field(None, description="The column that names the split of each row.")
    splits: Mapping[str, str] = Field({}, description="For each split a text file of names, one a line.")
    tasks: Mapping[str, TaskDescription] = Field(description="The tasks.", min_length=1)


def read_description(path: Path) -> TableDescription:
    """Read a description.

    Raises:
        DataError: a file that is missing or no YAML, unknown keys, or entries that contradict each other; each place is
            named.
    """
    try:
        document = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from error
    try:
        description = TableDescription.model_validate(document)
    except ValidationError as error:
        problems = [f"{path}: {show_keys(each['loc']) or 'the document'}: {each['msg']}" for each in error.errors()]
        raise DataError("\n".join(problems)) from error
    _check(path, description)
    return description


def _check(path: Path, found: TableDescription) -> None:
    problems = []
    if (found.images is None) == (not found.inputs):
        problems.append("expected `images`, a folder, or `inputs`, columns of the table, and not both")
    if found.table is None and (found.inputs or found.split_column):
        problems.append("`inputs` and `split_column` name columns; expected `table`, a CSV file")
    if found.splits and (found.split_column or found.inputs):
        problems.append("`splits` lists names of images; expected no `split_column` or `inputs` as well")
    wrong = {task: _problem(each, found) for task, each in found.tasks.items()}
    problems += [f"tasks.{task}: {text}" for task, text in wrong.items() if text]
    if problems:
        raise DataError("\n".join(f"{path}: {text}" for text in problems))


def _problem(task: TaskDescription, found: TableDescription) -> str:
    pixelwise = task.kind in PIXELWISE
    if task.kind == "boxes":
        return "kind 'boxes' is not read from tables; expected another kind, or a Dataset of your own"
    if pixelwise and (task.folder is None or found.images is None):
        return f"kind {task.kind!r} has a label at each pixel; expected `folder`, and `images`"
    if not pixelwise and task.folder is not None:
        return f"kind {task.kind!r} has one label an input; expected `column` or `columns` in place of `folder`"
    if not pixelwise and (task.column is None) == (not task.columns):
        return "expected either `column` or `columns`"
    if task.columns and task.kind not in ("regression", "binary"):
        return f"kind {task.kind!r} has one label; expected `column` in place of `columns`"
    if (task.column or task.columns) and found.table is None:
        return "it names a column; expected `table`, a CSV file"
    if task.kind in ("classification", "segmentation") and not task.classes:
        return f"kind {task.kind!r} needs `classes`: their number or their names"
    return ""
