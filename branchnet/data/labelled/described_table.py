"""A folder or table of one's own, described by a small YAML file."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from branchnet.data.images import image_paths
from branchnet.data.labelled.label_files import read_array, read_lines, read_pixels, read_rgb, read_text
from branchnet.data.labelled.label_forms import LabelForm, checked_classes, resized_like
from branchnet.data.labelled.labelled_images import Labels
from branchnet.data.labelled.table_description import TableDescription, TaskDescription, read_description
from branchnet.errors import DataError

_YES_AND_NO = {"0": 0.0, "1": 1.0, "no": 0.0, "yes": 1.0, "false": 0.0, "true": 1.0, "-1": 0.0}


def checked_table(description: str | Path, *, most: int = 20) -> tuple[dict[str | None, int], dict[str, int]]:
    """Read a description, its table and its lists, and every cell that holds a label; no image is opened.

    Args:
        description: the YAML file.
        most: problems of cells that are named.

    Returns:
        The number of samples of each split, of None where there are no splits; and for each task whose labels are in
        the table how many of all samples have one.

    Raises:
        DataError: every problem of the description, or the first one of the table, or those of its cells.

    >>> checked_table("missing.yaml")
    Traceback (most recent call last):
        ...
    branchnet.errors.DataError: missing.yaml does not exist; expected a text file
    """
    path = Path(description)
    found = read_description(path)
    splits: list[str | None] = [*sorted(_splits(found, _read_rows(found, path.parent)))]
    counts: dict[str | None, int] = {}
    tables: list[LabelledTable] = []
    problems: list[str] = []
    for split in splits or [None]:
        table = LabelledTable(description, split)
        counts[split] = len(table)
        problems += table.problems_of_cells()
        tables.append(table)
    if problems:
        rows = Counter(_without_row(problem) for problem in problems)
        first = {_without_row(problem): problem for problem in reversed(problems)}
        said = [first[text] + (f" (and in {count - 1} more rows)" if count > 1 else "") for text, count in rows.items()]
        more = [f"... and {len(said) - most} other problems"] if len(said) > most else []
        raise DataError("\n".join([*said[:most], *more]))
    in_cells = [task for task, each in found.tasks.items() if each.folder is None]
    return counts, {task: sum(table.count_labels(task) for table in tables) for task in in_cells}


def _without_row(problem: str) -> str:
    """The problem of a cell without the row that it is in; that of a missing image as it is."""
    return problem.partition("), column ")[2] if "column 'image'" not in problem else problem


class LabelledTable(Dataset[tuple[Tensor, Labels]]):
    """Images of a folder, or rows of a table, with labels as a YAML file describes them: (input, {task: label}).

    Such a file::

        images: photos                      # a folder, next to the YAML file; or `inputs: [height, weight]`, columns
        table: labels.csv                   # optional; its column `image` names the images
        split_column: split                 # or `splits: {train: train.txt, test: test.txt}`, lists of images
        tasks:
          scene: {kind: classification, column: scene, classes: [kitchen, street]}
          age:   {kind: regression, column: age, unit: years}
          toxic: {kind: binary, columns: [heart, liver]}
          depth: {kind: depth, folder: depth, suffix: .png, scale: 0.001, missing: 0, unit: m}

    An empty cell is a missing label. Files of labels are named as their image, but for the suffix, or by `column`; with
    `partial: true` one that is not there is a missing label, too. Kinds and forms of labels are those of `LabelForm`;
    images of normals hold `127.5 (n + 1)`, arrays (.npy) the numbers themselves, (H, W) or (H, W, C).

    Args:
        description: the YAML file. Its paths are relative to its folder.
        split: one of the splits that it names; None where it names none.

    Attributes:
        label_forms: what the labels of each task are.
        names: of the samples: the images' paths in their folder, or the numbers of the rows.
        split: the split.

    Raises:
        DataError: a description, table or list that is missing, damaged or contradicts itself; reading a sample: a file
            or cell that is no such label. File, line and column are named.
    """

    def __init__(self, description: str | Path, split: str | None = None) -> None:
        path = Path(description)
        self._description, self._folder, self.split = read_description(path), path.parent, split
        self.label_forms: dict[str, LabelForm] = {task: each.form for task, each in self._description.tasks.items()}
        self._rows = _read_rows(self._description, self._folder)
        self._numbers_of_rows: dict[str, int] = {}
        self.names: Sequence[str] = self._chosen(path)
        if not self.names:
            raise DataError(f"{path} describes no sample of the split {split!r}; expected at least one")

    @property
    def place(self) -> Path:
        """The folder or the table that `names` are of."""
        return (self._folder / str(self._description.images or self._description.table)).resolve()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Labels]:
        labels = self.labels(index)
        if self._description.images is None:
            return self._numbers(self.names[index], self._description.inputs), labels
        image = read_rgb(self._folder / self._description.images / self.names[index])
        return image, {task: self._sized(task, label, image, index) for task, label in labels.items()}

    def labels(self, index: int) -> Labels:
        """The labels of one sample, without its input and at their own size.

        Args:
            index: the number of the sample.

        Returns:
            labels by task; None where one is missing.
        """
        name = self.names[index]
        return {task: self._label(task, each, name) for task, each in self._description.tasks.items()}

    def problems_of_cells(self) -> list[str]:
        """Read the cells of all samples that hold a label, and look for their images, of which none is opened.

        Returns:
            what is wrong with each, with its row and column.
        """
        found = []
        if self._description.images is not None and self._description.table is not None:
            folder = self._folder / self._description.images
            lacking = (name for name in self.names if not (folder / name).is_file())
            found = [
                f"{self._place(name, 'image')}: {folder / name} is not there; expected an image" for name in lacking
            ]
        cells = [(task, each) for task, each in self._description.tasks.items() if each.folder is None]
        read = (self._problem_of(task, each, name) for task, each in cells for name in self.names)
        return found + [problem for problem in read if problem]

    def count_labels(self, task: str) -> int:
        """Count the samples that have a label in the table.

        Args:
            task: one whose labels are in columns.

        Returns:
            The number of samples, those without a label left out.
        """
        described = self._description.tasks[task]
        return sum(self._label(task, described, name) is not None for name in self.names)

    def _problem_of(self, task: str, described: TaskDescription, name: str) -> str:
        try:
            self._label(task, described, name)
        except DataError as error:
            return str(error)
        return ""

    def _sized(self, task: str, label: Tensor | None, image: Tensor, index: int) -> Tensor | None:
        if label is None or not self.label_forms[task].pixelwise:
            return label
        return resized_like(label, image, f"{self.names[index]}: the label {task!r}")

    def _chosen(self, path: Path) -> list[str]:
        found, split = self._description, self.split
        known = _splits(found, self._rows)
        if split is None and known:
            raise DataError(f"{path} has the splits {sorted(known)}; expected split= to name one of them")
        if split is not None and split not in known:
            raise DataError(f"split={split!r}; expected one of {sorted(known) or 'none: ' + str(path) + ' names none'}")
        if split is None:
            return list(self._rows)
        if found.split_column:
            return [name for name, row in self._rows.items() if row[found.split_column] == split]
        lists = {each: read_lines(self._folder / file) for each, file in found.splits.items()}
        names = lists[split]
        if unknown := [name for name in names if name not in self._rows]:
            raise DataError(f"{found.splits[split]} names {unknown[0]!r}, which is not there; expected names of images")
        for other, file in found.splits.items():
            if other != split and (shared := sorted(set(names) & set(lists[other]))):
                raise DataError(f"{shared[0]!r} is in {found.splits[split]} and in {file}; expected it in one split")
        return names

    def _label(self, task: str, described: TaskDescription, name: str) -> Tensor | None:
        if described.folder is not None:
            return self._map(task, described, name)
        if described.kind == "classification":
            return self._class(described, name)
        columns = described.columns or (str(described.column),)
        values = self._numbers(name, columns, yes_and_no=described.kind == "binary")
        return None if bool(values.isnan().all()) else values

    def _class(self, described: TaskDescription, name: str) -> Tensor | None:
        cell = self._rows[name][str(described.column)].strip()
        if not cell:
            return None
        classes = described.classes
        count = len(classes) if isinstance(classes, tuple) else int(classes or 0)
        if isinstance(classes, tuple) and cell in classes:
            return torch.tensor(classes.index(cell))
        if cell.isdecimal() and not isinstance(classes, tuple) and int(cell) < count:
            return torch.tensor(int(cell))
        expected = f"one of {', '.join(classes)}" if isinstance(classes, tuple) else f"a number from 0 to {count - 1}"
        raise DataError(f"{self._place(name, str(described.column))}: {cell!r}; expected {expected}, or an empty cell")

    def _numbers(self, name: str, columns: Sequence[str], *, yes_and_no: bool = False) -> Tensor:
        values = []
        for column in columns:
            cell = self._rows[name][column].strip()
            try:
                found = _YES_AND_NO[cell.lower()] if yes_and_no and cell else float(cell or "nan")
                if math.isinf(found):
                    raise ValueError("infinite")
            except (KeyError, ValueError) as error:
                expected = "0 or 1" if yes_and_no else "a finite number"
                raise DataError(f"{self._place(name, column)}: {cell!r}; expected {expected}") from error
            values.append(found)
        return torch.tensor(values)

    def _map(self, task: str, described: TaskDescription, name: str) -> Tensor | None:
        file = Path(name).with_suffix(described.suffix).as_posix()
        if described.column is not None:
            file = self._rows[name][described.column].strip()
            if not file:
                return None
        path = self._folder / str(described.folder) / file
        if described.partial and not path.exists():
            return None
        stored = read_array(path) if path.suffix == ".npy" else read_pixels(path)
        form = self.label_forms[task]
        if form.kind == "segmentation":
            if stored.ndim != 2 or not np.issubdtype(stored.dtype, np.integer):
                raise DataError(f"{path} is {stored.dtype} of shape {stored.shape}; expected whole numbers (H, W)")
            return checked_classes(torch.from_numpy(stored.astype(np.int64)), form, str(path))
        values = torch.from_numpy(stored.astype(np.float32))
        values = values[None] if values.dim() == 2 else values.movedim(-1, 0)
        if values.dim() != 3 or len(values) != form.channels:
            raise DataError(f"{path} has shape {stored.shape}; expected {form.channels} channels, (H, W, C) or (H, W)")
        return _scaled(values, described, stored.dtype == np.uint8)

    def _place(self, name: str, column: str) -> str:
        table = self._folder / str(self._description.table)
        if not self._numbers_of_rows:
            self._numbers_of_rows = {each: number for number, each in enumerate(self._rows, 2)}  # as editors count
        return f"{table}, row {self._numbers_of_rows[name]} ({name}), column {column!r}"


def _read_rows(found: TableDescription, folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the table by the name of the image, or by their number; without a table, empty ones."""
    if found.table is None:
        root = folder / str(found.images)
        return {path.relative_to(root).as_posix(): {} for path in image_paths(root)}
    table = folder / found.table
    reader = csv.DictReader(io.StringIO(read_text(table)))
    rows = list(reader)
    columns = set(reader.fieldnames or ())
    if cut := next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), 0):
        raise DataError(f"{table}, row {cut} has another number of cells than the line of headings; expected as many")
    named = {"image"} if found.images is not None else set(found.inputs)
    named |= {found.split_column} if found.split_column else set()
    for task in found.tasks.values():
        named |= {task.column} if task.column else set(task.columns)
    if missing := sorted(str(name) for name in named - columns):
        raise DataError(f"{table} has the columns {sorted(columns)} and lacks {missing}; expected them")
    names = [row["image"] if found.images is not None else str(number) for number, row in enumerate(rows)]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"{table} names the image {twice!r} twice; expected one row for each")
    return dict(zip(names, rows, strict=True))


def _splits(found: TableDescription, rows: Mapping[str, Mapping[str, str]]) -> set[str]:
    return {row[found.split_column] for row in rows.values()} if found.split_column else set(found.splits)


def _scaled(values: Tensor, described: TaskDescription, bytes_: bool) -> Tensor:
    known = torch.ones_like(values, dtype=torch.bool) if described.missing is None else values != described.missing
    if described.kind == "normals":
        vectors = values / 127.5 - 1 if bytes_ else values
        return torch.nn.functional.normalize(vectors.nan_to_num(0), dim=0) * known.any(0)
    if described.kind in ("edges", "saliency"):
        values = (values > (127.5 if bytes_ and values.max() > 1 else 0.5)).float()
    return torch.where(known, values * described.scale, torch.nan)
