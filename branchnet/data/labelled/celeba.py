"""CelebA in its official layout: forty attributes of faces, each a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from branchnet.data.labelled.label_files import existing_folder, read_lines
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import LabelledImages
from branchnet.errors import DataError


class CelebA(LabelledImages):
    """CelebA (Liu et al. 2015): aligned faces with 40 attributes, each a task of two classes, 0 for no and 1 for yes.

    The layout is the official one, which torchvision's `CelebA` reads, too (torchvision/datasets/celeba.py):
    `list_attr_celeba.txt` (a number, the names, a line of -1 and 1 for each file), `list_eval_partition.txt` (0 train,
    1 valid, 2 test) and `img_align_celeba/`, in one folder, or in `Anno`, `Eval` and `Img` as they are downloaded.

    Args:
        root: the folder.
        split: `train`, `valid` or `test`.
        tasks: names of attributes, all by default.
    """

    SPLITS = ("train", "valid", "test")

    def _image(self, name: str) -> Path:
        return self._images / name

    def _forms(self) -> Mapping[str, LabelForm]:
        path = self._find("list_attr_celeba.txt", "Anno")
        lines = read_lines(path)
        self._attributes = lines[1].split() if len(lines) > 1 else []
        answers: list[list[bool]] = []
        self._rows: dict[str, int] = {}
        for number, line in enumerate(lines[2:], start=3):
            name, *values = line.split()
            if len(values) != len(self._attributes) or not set(values) <= {"-1", "1"}:
                raise DataError(
                    f"{path}, line {number}: {len(values)} values; expected {len(self._attributes)} of -1 and 1, one "
                    "for each attribute"
                )
            self._rows[name] = len(answers)
            answers.append([value == "1" for value in values])
        self._answers = torch.tensor(answers, dtype=torch.uint8)
        if not answers:
            raise DataError(f"{path} holds no attributes; expected a number, a line of names, and a line for each file")
        return {name: LabelForm("classification", 2, names=("no", "yes")) for name in self._attributes}

    def _names(self) -> Sequence[str]:
        path = self._find("list_eval_partition.txt", "Eval")
        wanted = str(self.SPLITS.index(self.split))
        names = []
        for number, line in enumerate(read_lines(path), start=1):
            fields = line.split()
            if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
                raise DataError(f"{path}, line {number}: {line!r}; expected a file name and 0, 1 or 2")
            if fields[1] == wanted:
                names.append(fields[0])
        if missing := [name for name in names if name not in self._rows]:
            raise DataError(f"{missing[0]} is in {path} and has no attributes in list_attr_celeba.txt; expected them")
        self._images = existing_folder(self._find("img_align_celeba", "Img"))
        return names

    def _label(self, task: str, name: str) -> Tensor | None:
        return self._answers[self._rows[name], self._attributes.index(task)].long()

    def _find(self, name: str, folder: str) -> Path:
        inside = self.root / folder / name
        return inside if inside.exists() else self.root / name
