"""One transform of torchvision for an image and all its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from branchnet.data.augmentation.pixel_map import PixelMap, coordinates, orthogonal, read_map, zoom
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import Labels
from branchnet.errors import DataError


class JointTransform:
    """Changes an image, and every label as the image.

    The transform is any of `torchvision.transforms.v2`, or several composed, applied once to the image, a map of its
    pixels' coordinates and its boxes; all labels follow the map. So each takes the value of the nearest pixel (classes
    and depths of two pixels are never mixed), and where something is filled in (padding, rotation) labels are missing,
    whatever the image is filled with. Colours change in the image alone.

    - Normals are turned with the image: a horizontal flip changes the sign of x, a rotation turns x and y, resizing and
      shearing by itself turns nothing.
    - Offsets, in pixels, are turned, flipped and scaled.
    - Depth, disparity and other maps keep their values: an image that is enlarged is taken as one of a longer lens.
      With `depth_scales` it is taken as one from nearer by: depths are divided by the enlargement, as in the code of
      Maninis et al. (2019) and Liu, Johns and Davison (2019).
    - Boxes follow as torchvision's do, and are clipped to the image; those that leave it have no area.
    - Classes and numbers of the whole image stay as they are.

    Args:
        transform: of `torchvision.transforms.v2`.
        label_forms: what the labels of each task are.
        depth_scales: whether depth changes with the size of things.

    Raises:
        DataError: torchvision is not installed; in a call, a label of another size than the image, or normals, offsets
            or scaled depths that would have to follow a transform that is not affine, such as an elastic one.
    """

    def __init__(
        self, transform: Callable[..., Any], label_forms: Mapping[str, LabelForm], *, depth_scales: bool = False
    ) -> None:
        _tv_tensors()
        self.transform, self.label_forms, self.depth_scales = transform, dict(label_forms), depth_scales

    def __call__(self, image: Tensor, labels: Mapping[str, Tensor | None]) -> tuple[Tensor, Labels]:
        """Change an image (C, H, W) and its labels; the arguments stay as they are."""
        tensors = _tv_tensors()
        height, width = image.shape[-2:]
        boxes = {
            task: tensors.BoundingBoxes(label, format="XYXY", canvas_size=(height, width))
            for task, label in labels.items()
            if label is not None and self._form(task).kind == "boxes"
        }
        changed, places, boxes = self.transform(tensors.Image(image), tensors.Mask(coordinates(height, width)), boxes)
        found = torch.as_tensor(changed).as_subclass(Tensor)
        if found.shape[-2:] != places.shape[-2:]:
            raise DataError(
                f"the transform makes an image of {tuple(found.shape[-2:])} pixels and masks of "
                f"{tuple(places.shape[-2:])}; expected a transform of torchvision.transforms.v2, which changes both"
            )
        pixels = read_map(places.as_subclass(Tensor))
        return found, {
            task: boxes[task].as_subclass(Tensor) if task in boxes else self._changed(task, label, pixels, image)
            for task, label in labels.items()
        }

    def _changed(self, task: str, label: Tensor | None, pixels: PixelMap, image: Tensor) -> Tensor | None:
        form = self._form(task)
        if label is None or not form.pixelwise:
            return label
        if label.shape[-2:] != image.shape[-2:]:
            raise DataError(
                f"the label {task!r} has shape {tuple(label.shape)} and the image {tuple(image.shape)}; expected "
                "the image's height and width"
            )
        found = pixels.take(label, form.missing)
        what = f"the {form.kind} {task!r}"
        if form.kind == "normals":
            turn = orthogonal(pixels.linear(what)).to(found)
            return torch.cat([torch.einsum("ij,jhw->ihw", turn, found[:2]), found[2:]])
        if form.kind == "offsets":
            return torch.einsum("ij,jhw->ihw", pixels.linear(what).to(found), found)
        if form.kind == "depth" and self.depth_scales:
            return found / zoom(pixels.linear(what))
        return found

    def _form(self, task: str) -> LabelForm:
        if task not in self.label_forms:
            raise DataError(f"the label {task!r} is unknown; expected one of {', '.join(self.label_forms)}")
        return self.label_forms[task]


def _tv_tensors() -> Any:
    try:
        from torchvision import tv_tensors
    except ImportError as error:
        raise DataError("joint transforms need torchvision: pip install 'branchnet[vision]'") from error
    return tv_tensors
