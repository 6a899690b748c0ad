"""Cityscapes in its official layout, with the 19 classes that are evaluated, instance centres, and disparity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from branchnet.data.labelled.label_files import Array, existing_folder, read_pixels
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import LabelledImages
from branchnet.errors import DataError

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The id in `labelIds` files of each of the classes."""
_VOID = 255
_INSTANCES = 1000
"""Ids in `instanceIds` files from here on are instances: 1000 times the class id, plus a number."""


class Cityscapes(LabelledImages):
    """Cityscapes (Cordts et al. 2016): street scenes with classes, instances and disparity.

    The layout is that of github.com/mcordts/cityscapesScripts (README, "Dataset Structure"; ids and train ids in
    helpers/labels.py): `{type}/{split}/{city}/{city}_{seq}_{frame}_{type}{ext}` with the types `leftImg8bit`, `gtFine`
    (`_labelIds.png`, `_instanceIds.png`), `disparity` and `camera`. Only the folders of the tasks asked for are needed.

    Tasks:

    - `segmentation`: the 19 train ids, 255 for void.
    - `offsets`: from each pixel of an instance to the mean of its pixels, as in Kendall, Gal and Cipolla (2018); NaN
      outside the instances of evaluated classes.
    - `disparity`: in pixels, `(p - 1) / 256`; NaN where p = 0. It is the inverse depth times a constant of the camera.
    - `inverse_depth`: in 1/m, the disparity divided by focal length and baseline, which are read from `camera`.

    The labels of the test split are not public: `segmentation` and `offsets` are None there.

    Args:
        root: the folder with `leftImg8bit` in it.
        split: `train`, `val` or `test`.
        tasks: which labels are read, all by default.
    """

    SPLITS = ("train", "val", "test")
    FORMS: ClassVar[Mapping[str, LabelForm]] = {
        "segmentation": LabelForm("segmentation", len(CLASSES), _VOID, names=CLASSES),
        "offsets": LabelForm("offsets", 2, unit="px"),
        "disparity": LabelForm("map", unit="px"),
        "inverse_depth": LabelForm("map", unit="1/m"),
    }

    def _image(self, name: str) -> Path:
        return self._path("leftImg8bit", name, ".png")

    def _names(self) -> Sequence[str]:
        folder = existing_folder(self.root / "leftImg8bit" / self.split)
        end = "_leftImg8bit.png"
        return [path.name.removesuffix(end) for path in sorted(folder.glob(f"*/*{end}"))]

    def _path(self, kind: str, name: str, end: str) -> Path:
        return self.root / kind / self.split / name.split("_")[0] / f"{name}_{kind}{end}"

    def _label(self, task: str, name: str) -> Tensor | None:
        if self.split == "test" and task in ("segmentation", "offsets"):
            return None
        if task == "segmentation":
            return _train_ids(self._path("gtFine", name, "_labelIds.png"))
        if task == "offsets":
            return _offsets(read_pixels(self._path("gtFine", name, "_instanceIds.png")))
        disparity = _disparity(read_pixels(self._path("disparity", name, ".png")))
        return (
            disparity if task == "disparity" else disparity / _focal_times_baseline(self._path("camera", name, ".json"))
        )


def _train_ids(path: Path) -> Tensor:
    table = torch.full((256,), _VOID, dtype=torch.int64)
    table[list(_IDS)] = torch.arange(len(_IDS))
    ids = read_pixels(path)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(
            f"{path} has {ids.dtype} pixels of shape {ids.shape}; expected uint8 (H, W), as in labelIds files"
        )
    return table[torch.from_numpy(ids).long()]


def _offsets(ids: Array) -> Tensor:
    """(2, H, W): x and y from each pixel to the mean of its instance's pixels."""
    numbers = ids.astype(np.int64)
    counted = (numbers >= _INSTANCES) & np.isin(numbers // _INSTANCES, _IDS)
    found = np.full((2, *ids.shape), np.nan, np.float32)
    rows, columns = np.nonzero(counted)
    _, instance, pixels = np.unique(numbers[counted], return_inverse=True, return_counts=True)
    for channel, places in enumerate((columns, rows)):
        centres = np.bincount(instance, places) / pixels
        found[channel, rows, columns] = centres[instance] - places
    return torch.from_numpy(found)


def _disparity(pixels: Array) -> Tensor:
    stored = torch.from_numpy(pixels.astype(np.float32))
    return torch.where(stored > 0, (stored - 1) / 256, torch.nan)[None]


def _focal_times_baseline(path: Path) -> float:
    if not path.exists():
        raise DataError(f"{path} does not exist; expected the camera of the image, for depth from disparity")
    try:
        camera = json.loads(path.read_text(encoding="utf-8"))
        return float(camera["intrinsic"]["fx"]) * float(camera["extrinsic"]["baseline"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}; expected intrinsic.fx and extrinsic.baseline") from error
