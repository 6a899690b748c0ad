"""NYUv2 in the multi-task layout "NYUD-MT"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from branchnet.data.labelled.label_files import Array, read_array, read_lines, read_pixels
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import LabelledImages
from branchnet.errors import DataError

CLASSES = 40
_VOID = 255


class NYUD(LabelledImages):
    """NYU Depth v2 (Silberman et al. 2012) in the layout "NYUD-MT": 795 indoor images to train on, 654 to validate.

    The layout is that of `data/nyud.py` in github.com/SimonVandenhende/Multi-Task-Learning-PyTorch, after
    github.com/facebookresearch/astmt: lists of names in `gt_sets/{split}.txt`; `images/{name}.jpg`,
    `segmentation/{name}.png`, `depth/{name}.npy`, `normals/{name}.npy`, `edge/{name}.npy`. Only the folders of the
    tasks asked for are needed.

    Tasks:

    - `segmentation`: 40 classes; 0 of the files is void, which is 255 here, and the others move down by one.
    - `depth`: in metres; NaN where the file says 0.
    - `normals`: unit vectors; 0 where the file says so.
    - `edges`: 0 and 1.

    Args:
        root: the folder with `gt_sets` in it.
        split: `train` or `val`.
        tasks: which labels are read, all by default.
    """

    SPLITS = ("train", "val")
    FORMS: ClassVar[Mapping[str, LabelForm]] = {
        "segmentation": LabelForm("segmentation", CLASSES, _VOID),
        "depth": LabelForm("depth", unit="m"),
        "normals": LabelForm("normals", 3),
        "edges": LabelForm("edges"),
    }

    def _image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.jpg"

    def _names(self) -> Sequence[str]:
        return read_lines(self.root / "gt_sets" / f"{self.split}.txt")

    def _label(self, task: str, name: str) -> Tensor | None:
        if task == "segmentation":
            stored = torch.from_numpy(read_pixels(self.root / "segmentation" / f"{name}.png").astype(np.int64))
            return torch.where(stored == 0, _VOID, stored - 1)
        path = self.root / {"edges": "edge"}.get(task, task) / f"{name}.npy"
        values = torch.from_numpy(_channels_first(read_array(path), self.label_forms[task].channels, path))
        if task == "depth":
            return torch.where(values > 0, values, torch.nan)
        return torch.nn.functional.normalize(values, dim=0) if task == "normals" else (values > 0).float()


def _channels_first(array: Array, channels: int, path: Path) -> Array:
    """float32 (C, H, W) of (H, W), (H, W, C)."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != channels:
        raise DataError(f"{path} has shape {array.shape}; expected (H, W, {channels})")
    return np.ascontiguousarray(np.moveaxis(array, 2, 0), np.float32)
