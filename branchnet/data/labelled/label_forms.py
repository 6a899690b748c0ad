"""What the labels of a task are: their kind, how many outputs they ask for, and what marks a missing one.

The label of one sample, by kind; a batch has one dimension more, and `None` stands for a label that is missing.

- `classification`: int64 (); `segmentation`: int64 (H, W). `ignore` marks a missing one.
- `regression`: float32 (C,); `binary`: 0 and 1, float32 (C,). NaN is missing.
- `depth`, `map` (heat maps, disparity, curvature ...): float32 (C, H, W). NaN is missing.
- `edges`, `saliency`: 0 and 1, float32 (1, H, W). NaN is missing.
- `normals`: unit vectors, float32 (3, H, W), x to the right and y down the image. Length 0 is missing.
- `offsets`: from each pixel to a point, in pixels (x, y), float32 (2, H, W). NaN is missing.
- `boxes`: float32 (n, 4), left, top, right, bottom in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from branchnet.errors import DataError

LabelKind: TypeAlias = Literal[
    "classification",
    "segmentation",
    "regression",
    "binary",
    "depth",
    "map",
    "edges",
    "saliency",
    "normals",
    "offsets",
    "boxes",
]
PIXELWISE = frozenset({"segmentation", "depth", "map", "edges", "saliency", "normals", "offsets"})
"""Kinds that have a label at every pixel."""


@dataclass(frozen=True)
class LabelForm:
    """What the labels of a task are; this module says what each kind is.

    Attributes:
        kind: what they say.
        channels: outputs that a network needs: the classes, or the channels of the labels.
        ignore: a class that marks a missing label.
        unit: of numbers, for the names of metrics.
        names: of the classes or channels, where they have any.

    Raises:
        DataError: an unknown kind, or no channel.

    >>> import branchnet
    >>> branchnet.data.LabelForm("segmentation", channels=19, ignore=255).pixelwise
    True
    """

    kind: LabelKind
    channels: int = 1
    ignore: int | None = None
    unit: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(LabelKind):
            raise DataError(f"the kind of labels is {self.kind!r}; expected one of {', '.join(get_args(LabelKind))}")
        if self.channels < 1:
            raise DataError(f"channels={self.channels}; expected 1 or more")

    @property
    def pixelwise(self) -> bool:
        """Whether there is a label at every pixel."""
        return self.kind in PIXELWISE

    @property
    def missing(self) -> float:
        """What stands where a pixel has no label."""
        if self.kind == "segmentation":
            return -1 if self.ignore is None else self.ignore
        return 0.0 if self.kind == "normals" else torch.nan


def resized_like(label: Tensor, image: Tensor, what: str) -> Tensor:
    """A pixelwise label at an image's resolution, each pixel's label that of the nearest one.

    Args:
        label: (..., h, w).
        image: (C, H, W).
        what: how errors name the label.

    Raises:
        DataError: the label has other proportions than the image.
    """
    (h, w), (height, width) = label.shape[-2:], image.shape[-2:]
    if (h, w) == (height, width):
        return label
    if abs(h * width - w * height) > max(h, w, height, width):  # more than rounding to whole pixels explains
        raise DataError(f"{what} is {h} x {w} pixels and the image {height} x {width}; expected equal proportions")
    rows, columns = (torch.arange(height) * h) // height, (torch.arange(width) * w) // width
    return label[..., rows[:, None], columns]


def checked_classes(label: Tensor, form: LabelForm, what: str) -> Tensor:
    """`label`, if it holds no other classes than the form has.

    Args:
        label: int64.
        form: of its task.
        what: how errors name the label.

    Raises:
        DataError: it does.
    """
    outside = label[(label < 0) | (label >= form.channels)]
    outside = outside[outside != form.ignore]
    if len(outside):
        raise DataError(
            f"{what} holds the class {int(outside[0])}; expected 0 to {form.channels - 1}"
            + ("" if form.ignore is None else f", or {form.ignore} where there is none")
        )
    return label
