"""PASCAL-Context in the multi-task layout "PASCAL-MT"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from branchnet.data.labelled.edge_thinning import boundaries, thin
from branchnet.data.labelled.label_files import Array, read_lines, read_matlab, read_pixels
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import LabelledImages
from branchnet.errors import DataError

CLASSES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_PART_IDS = {
    **dict.fromkeys(("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "lhand", "rlarm", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "lfoot", "rlleg", "rfoot"), 6),
}
_PERSON = 15
"""The class of people in files of parts."""
# fmt: off
_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56,
    59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124,
    135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202,
    213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261,
    263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314,
    315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442,
    443, 444, 446, 454, 457,
)
# fmt: on
"""Classes of PASCAL-Context (of 459) that NYUv2 has, too, and tvmonitor: where normals were distilled from a network
that was trained on NYUv2."""


class PascalContext(LabelledImages):
    """PASCAL-Context for several tasks: 4,998 images to train on, 5,105 to validate (Maninis et al. 2019).

    The layout is that of `data/pascal_context.py` in github.com/SimonVandenhende/Multi-Task-Learning-PyTorch, after
    github.com/facebookresearch/astmt (PASCAL_MT.tgz): lists of names in `ImageSets/Context/{split}.txt`,
    `JPEGImages/{name}.jpg`, and for each task the files below. Only those of the tasks asked for are needed.

    Tasks:

    - `segmentation`: background and the 20 classes of VOC, 255 for void; `semseg/VOC12/{name}.png`, or where there is
      none `semseg/pascal-context/{name}.png`.
    - `human_parts`: background and six parts; `human_parts/{name}.mat`. None where nobody's parts are marked.
    - `normals`: distilled; `normals_distill/{name}.png`. 0 on classes that no indoor network knows, read from the class
      map in `pascal-context/trainval/{name}.mat`.
    - `saliency`: distilled, 1 where `sal_distill/{name}.png` is above one half.
    - `edges`: where the class map changes, thinned to one pixel.

    Args:
        root: the folder with `ImageSets` in it.
        split: `train` or `val`.
        tasks: which labels are read, all by default.
    """

    SPLITS = ("train", "val")
    FORMS: ClassVar[Mapping[str, LabelForm]] = {
        "segmentation": LabelForm("segmentation", len(CLASSES), 255, names=CLASSES),
        "human_parts": LabelForm("segmentation", len(PARTS), 255, names=PARTS),
        "normals": LabelForm("normals", 3),
        "saliency": LabelForm("saliency"),
        "edges": LabelForm("edges"),
    }

    def _image(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def _names(self) -> Sequence[str]:
        return read_lines(self.root / "ImageSets" / "Context" / f"{self.split}.txt")

    def _label(self, task: str, name: str) -> Tensor | None:
        if task == "segmentation":
            voc = self.root / "semseg" / "VOC12" / f"{name}.png"
            path = voc if voc.exists() else self.root / "semseg" / "pascal-context" / f"{name}.png"
            return torch.from_numpy(read_pixels(path).astype(np.int64))
        if task == "human_parts":
            return _human_parts(self.root / "human_parts" / f"{name}.mat")
        if task == "normals":
            pixels = read_pixels(self.root / "normals_distill" / f"{name}.png")
            return _normals(pixels, np.isin(self._class_map(name), _WITH_NORMALS))
        if task == "saliency":
            pixels = read_pixels(self.root / "sal_distill" / f"{name}.png")
            return torch.from_numpy((pixels > 127.5).astype(np.float32))[None]
        return torch.from_numpy(thin(boundaries(self._class_map(name))).astype(np.float32))[None]

    def _class_map(self, name: str) -> Array:
        path = self.root / "pascal-context" / "trainval" / f"{name}.mat"
        found = read_matlab(path)
        if "LabelMap" not in found:
            raise DataError(f"{path} has no LabelMap; expected the class of each pixel")
        return np.asarray(found["LabelMap"]).astype(np.int64)


def _normals(pixels: Array, known: Array) -> Tensor:
    if pixels.shape != (*known.shape, 3):
        raise DataError(f"normals have shape {pixels.shape}; expected {(*known.shape, 3)}, as the class map has")
    stored = torch.from_numpy(2 * pixels.astype(np.float32) / 255 - 1).movedim(-1, 0)
    return torch.nn.functional.normalize(stored, dim=0) * torch.from_numpy(known)


def _human_parts(path: Path) -> Tensor | None:
    """The parts of all people of an image; None without any."""
    content = read_matlab(path)
    try:
        objects: Any = content["anno"][0][0][1][0]
        people = [each for each in objects if each[1][0][0] == _PERSON and len(each[3])]
        if not people:
            return None
        parts = np.zeros(people[0][2].shape, np.int64)
        for person in people:
            for part in person[3][0]:
                parts[part[1].astype(bool)] = _PART_IDS[str(part[0][0])]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} has another form than PASCAL-Part annotations have: {error!r}") from error
    return torch.from_numpy(parts)
