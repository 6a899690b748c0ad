"""Taskonomy, its tiny partition by default, in the layout of its download tool."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from branchnet.data.labelled.label_files import Array, existing_folder, read_lines, read_pixels
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import LabelledImages
from branchnet.errors import DataError

_FILE = re.compile(r"point_(\d+)_view_(\d+)_domain_\w+\.png")
_FARTHEST = 65535
"""Stored where a ray meets nothing."""


class Taskonomy(LabelledImages):
    """Taskonomy (Zamir et al. 2018): indoor images of whole buildings, with labels computed from their meshes.

    Folders and units are those of github.com/StanfordVL/taskonomy (data/README.md), files those of its download tool
    (github.com/EPFL-VILAB/omnidata, taskonomy_dataset.py): `{task}/{building}/point_{p}_view_{v}_domain_{domain}.png`,
    or `{task}/taskonomy/{building}/...`. Which building belongs to which split is read from
    `train_val_test_{partition}.csv` (columns id, train, val, test), in the root or in `splits_taskonomy/`, from
    splits_taskonomy.zip of the same repository; of those, the buildings are used that are there.

    Tasks:

    - `segment_semantic`: 17 classes, background first; 0 of the files is "uncertain", which is 255 here.
    - `depth_zbuffer`, `depth_euclidean`: in metres (stored in 1/512 m); NaN where there is no surface.
    - `normal`: unit vectors; x to the right, y down, z towards the camera (github.com/EPFL-VILAB/omnidata/issues/13).
    - `edge_texture`, `edge_occlusion`, `keypoints2d`, `keypoints3d`, `reshading`: in [0, 1].
    - `principal_curvature`: two channels in [-1, 1], 127 of the files being 0.

    Args:
        root: the folder with `rgb` in it.
        split: `train`, `val` or `test`.
        tasks: which labels are read; `segment_semantic`, `depth_zbuffer`, `normal`, `keypoints2d` and `edge_texture`,
            as in Standley et al. (2020), by default.
        partition: `tiny`, `medium`, `full` or `fullplus`.
    """

    SPLITS = ("train", "val", "test")
    PARTITIONS = ("tiny", "medium", "full", "fullplus")
    FORMS: ClassVar[Mapping[str, LabelForm]] = {
        "segment_semantic": LabelForm("segmentation", 17, 255),
        "depth_zbuffer": LabelForm("depth", unit="m"),
        "depth_euclidean": LabelForm("depth", unit="m"),
        "normal": LabelForm("normals", 3),
        "keypoints2d": LabelForm("map"),
        "keypoints3d": LabelForm("map"),
        "edge_texture": LabelForm("map"),
        "edge_occlusion": LabelForm("map"),
        "reshading": LabelForm("map"),
        "principal_curvature": LabelForm("map", 2),
    }
    DEFAULT = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d", "edge_texture")

    def __init__(
        self, root: str | Path, split: str, tasks: Sequence[str] | None = None, *, partition: str = "tiny"
    ) -> None:
        if partition not in self.PARTITIONS:
            raise DataError(f"partition={partition!r}; expected one of {', '.join(self.PARTITIONS)}")
        self.partition = partition
        super().__init__(root, split, self.DEFAULT if tasks is None else tasks)

    def _image(self, name: str) -> Path:
        return self._file("rgb", name)

    def _names(self) -> Sequence[str]:
        """Building, point and view, as `building/3_7`, of every image; all labels of the tasks must be there."""
        self._files: dict[str, dict[str, Path]] = {}
        buildings = self._buildings()
        for task in ("rgb", *self.label_forms):
            folder = existing_folder(self.root / task)
            folder = folder / "taskonomy" if (folder / "taskonomy").is_dir() else folder
            self._files[task] = {
                f"{building}/{match[1]}_{match[2]}": path
                for building in buildings
                for path in (folder / building).glob("*.png")
                if (match := _FILE.fullmatch(path.name))
            }
        return sorted(self._files["rgb"], key=_by_numbers)

    def _buildings(self) -> list[str]:
        file = f"train_val_test_{self.partition}.csv"
        nested = self.root / "splits_taskonomy" / file
        path = nested if nested.exists() else self.root / file
        rows = list(csv.DictReader(read_lines(path)))
        if not rows or not {"id", *self.SPLITS} <= set(rows[0]):
            raise DataError(f"{path} has the columns {list(rows[0]) if rows else []}; expected id, train, val, test")
        return sorted(row["id"] for row in rows if row[self.split] == "1")

    def _file(self, task: str, name: str) -> Path:
        if (path := self._files[task].get(name)) is None:
            building, view = name.split("/")
            point, number = view.split("_")
            expected = self.root / task / building / f"point_{point}_view_{number}_domain_{task}.png"
            raise DataError(f"{expected} does not exist; expected the label {task!r} of each image")
        return path

    def _label(self, task: str, name: str) -> Tensor | None:
        path = self._file(task, name)
        try:
            return _DECODERS.get(self.label_forms[task].kind, _fractions)(read_pixels(path), self.label_forms[task])
        except (ValueError, IndexError, RuntimeError) as error:
            raise DataError(f"{path} has other pixels than {task!r} has: {error}") from error


def _by_numbers(name: str) -> tuple[str, int, int]:
    building, view = name.split("/")
    point, number = view.split("_")
    return building, int(point), int(number)


def _classes(pixels: Array, form: LabelForm) -> Tensor:
    stored = torch.from_numpy(pixels.astype(np.int64))
    return torch.where(stored == 0, 255, stored - 1)


def _depth(pixels: Array, form: LabelForm) -> Tensor:
    stored = torch.from_numpy(pixels.astype(np.float32))[None]
    return torch.where((stored > 0) & (stored < _FARTHEST), stored / 512, torch.nan)


def _normals(pixels: Array, form: LabelForm) -> Tensor:
    stored = torch.from_numpy(pixels[..., :3].astype(np.float32)).movedim(-1, 0) - 127.5
    unit = torch.nn.functional.normalize(stored, dim=0)
    return torch.where(stored.norm(dim=0) > 64, unit, 0.0)  # near the centre there is no normal


def _fractions(pixels: Array, form: LabelForm) -> Tensor:
    stored = torch.from_numpy(pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else _FARTHEST))
    if form.channels == 1:
        return stored[None] if stored.dim() == 2 else stored[None, ..., 0]
    return ((255 * stored - 127) / 128).movedim(-1, 0)[: form.channels].contiguous()


_DECODERS: dict[str, Callable[[Array, LabelForm], Tensor]] = {
    "segmentation": _classes,
    "depth": _depth,
    "normals": _normals,
}
