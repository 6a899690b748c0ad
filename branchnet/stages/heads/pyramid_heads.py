"""Heads of the YOLO family (versions 3 to 26 as ultralytics writes them), recognised by their attributes alone.

Such a head has one branch of convolutions for each kind of prediction and level of the pyramid, `cv2` for boxes, `cv3`
for classes, `cv4` for what the task adds. End-to-end heads have all of them twice, and infer with those that begin with
`one2one_`. Raw outputs are the maps of the branches that infer, (B, channels, H, W) for each level. To decode them the
head's own code is run on them, with branches that return them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages.heads.head_form import Given, HeadForm, Size, given_levels, with_modules

_ONE_TO_ONE = "one2one_"
_THIRD = {"proto": "mask_coefficient", "kpt_shape": "kpts", "ne": "angle"}
"""By an attribute of the head what its third branch predicts, as its own code names it."""


def _is_pyramid(module: nn.Module) -> bool:
    has = module.__dict__.get("_modules", {})
    return (
        callable(getattr(module, "_inference", None))
        and hasattr(module, "nl")
        and not has.keys().isdisjoint({"cv2", _ONE_TO_ONE + "cv2"})
    )


def _branches(head: nn.Module) -> dict[str, tuple[str, ...]]:
    """By kind of prediction the names of the layers that make it, one after the other, without their prefix."""
    found: dict[str, tuple[str, ...]] = {"boxes": ("cv2",), "scores": ("cv3",)}
    prefix = _prefix(head)
    if not hasattr(head, prefix + "cv4"):
        return found
    names = [name for attribute, name in _THIRD.items() if hasattr(head, attribute)]
    if len(names) != 1:
        raise SplitError(
            f"a head {type(head).__name__} has a branch cv4 of unknown meaning; expected prototypes, keypoints or "
            "angles; give its class the methods raw_outputs and decode_outputs (branchnet.stages.RawHead)"
        )
    keypoints = hasattr(head, prefix + "cv4_kpts")
    return found | {names[0]: ("cv4", "cv4_kpts") if keypoints else ("cv4",)}


def _prefix(head: nn.Module) -> str:
    return _ONE_TO_ONE if getattr(head, "end2end", False) else ""


def _raw_pyramid(head: Any, features: Sequence[Tensor]) -> dict[str, Any]:
    prefix = _prefix(head)
    raw: dict[str, Any] = {}
    for kind, layers in _branches(head).items():
        maps = [features[level] for level in range(head.nl)]
        for layer in layers:
            maps = [getattr(head, prefix + layer)[level](one) for level, one in enumerate(maps)]
        raw[kind] = maps
    if hasattr(head, "proto"):
        # Later versions make prototypes from all levels, and add logits of classes to them in training.
        raw["proto"] = (
            head.proto(list(features), return_semantic=False)
            if hasattr(head.proto, "feat_refine")
            else head.proto(features[0])
        )
    return raw


def _decode_pyramid(head: nn.Module, raw: Mapping[str, Any], size: Size) -> Any:
    replaced: dict[str, nn.Module] = {}
    for kind, layers in _branches(head).items():
        for layer in layers:
            # Both branches of an end-to-end head: its code runs the other one, too, for outputs that are dropped here.
            replaced |= {layer: given_levels(raw[kind]), _ONE_TO_ONE + layer: given_levels(raw[kind])}
    if "proto" in raw:
        replaced["proto"] = Given(raw["proto"])
    clone = with_modules(head, {name: module for name, module in replaced.items() if name in head._modules})
    clone.shape = None  # anchors of another size
    # Of the features themselves the code reads sizes only.
    found = clone(list(raw["boxes"]))
    predictions = found[0] if isinstance(found, tuple) else found
    return (predictions, raw["proto"]) if "proto" in raw and isinstance(predictions, Tensor) else predictions


def _is_classifier(module: nn.Module) -> bool:
    has = module.__dict__.get("_modules", {})
    return has.keys() == {"conv", "pool", "drop", "linear"} and hasattr(module, "export")


def _raw_classifier(head: Any, x: Tensor | list[Tensor]) -> Any:
    if isinstance(x, list):
        x = torch.cat(x, 1)
    return head.linear(head.drop(head.pool(head.conv(x)).flatten(1)))


def _is_query_decoder(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("dec_bbox_head", "dec_score_head", "denoising_class_embed"))


def _raw_queries(head: nn.Module, features: Sequence[Tensor], labels: Any = None) -> dict[str, Tensor]:
    """Of the last layer, in both modes: in training its code would return those of all layers."""
    outputs = type(head).forward(_in_evaluation(head), list(features))[1]
    return {"boxes": outputs[0][-1], "scores": outputs[1][-1]}


def _in_evaluation(head: nn.Module) -> Any:
    clone = with_modules(
        head, {name: _in_evaluation(child) for name, child in head._modules.items() if child is not None}
    )
    clone.shapes = None  # anchors of another size
    return clone


def _decode_queries(head: Any, raw: Mapping[str, Tensor], size: Size) -> Any:
    boxes, scores = raw["boxes"], raw["scores"].sigmoid()
    return head.postprocess(boxes, scores) if hasattr(head, "postprocess") else torch.cat((boxes, scores), -1)


FORMS = (
    HeadForm(_is_pyramid, _raw_pyramid, _decode_pyramid),
    HeadForm(_is_classifier, _raw_classifier, lambda head, raw, size: raw.softmax(1)),
    HeadForm(_is_query_decoder, _raw_queries, _decode_queries),
)
"""Detection, segmentation, keypoints and rotated boxes; classification; RT-DETR."""
