"""Detectors as torchvision writes them (SSD, RetinaNet, FCOS, Faster, Mask and Keypoint R-CNN), by their attributes.

Raw outputs of the one-stage detectors are what their head returns. Those of the two-stage ones are the maps of the
region proposal network and the features that the second stage reads; that stage follows proposals, so that it belongs
to decoding. Images are a batch (B, 3, H, W) of values from 0 to 1 that is normalised here, not resized. To decode, the
network's own code is run on the raw outputs, in place of its backbone and head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from branchnet.errors import SplitError
from branchnet.stages.heads.head_form import Given, HeadForm, Size, with_modules
from branchnet.stages.tracing.trial import borrow
from branchnet.utils.installed_torch.torch_internals import tree_map_only
from branchnet.utils.modes import mode_of

_ONE_STAGE = ("backbone", "head", "anchor_generator", "transform", "postprocess_detections")
_TWO_STAGES = ("backbone", "rpn", "roi_heads", "transform")


def _features(network: Any, images: Tensor) -> dict[str, Tensor]:
    """The maps of the backbone by name, as the networks' own code names a single one."""
    normalised = (images - _channels(network, "image_mean")) / _channels(network, "image_std")
    features: Any = network.backbone(normalised)
    one = isinstance(features, Tensor | fx.Proxy)
    return OrderedDict([("0", features)] if one else features)


def _channels(network: Any, name: str) -> Tensor:
    like = next(network.parameters())
    return torch.tensor(getattr(network.transform, name), dtype=like.dtype, device=like.device)[:, None, None]


def _raw_one_stage(network: Any, images: Tensor) -> dict[str, Tensor]:
    return dict(network.head(list(_features(network, images).values())))


def _decode_one_stage(network: Any, raw: Mapping[str, Tensor], size: Size) -> Any:
    images = _stand_ins(next(iter(raw.values())), size, type(network).__name__)
    replaced = {"backbone": Given(_stand_in_features(network, images)), "head": Given(dict(raw))}
    return _run_own_code(network, replaced, images)


def _raw_two_stages(network: Any, images: Tensor) -> dict[str, Any]:
    features = _features(network, images)
    objectness, deltas = network.rpn.head(list(features.values()))
    return {"objectness": objectness, "pred_bbox_deltas": deltas, "features": dict(features)}


def _decode_two_stages(network: Any, raw: Mapping[str, Any], size: Size) -> Any:
    features = OrderedDict(raw["features"])
    images = _stand_ins(next(iter(features.values())), size, type(network).__name__)
    head = Given((list(raw["objectness"]), list(raw["pred_bbox_deltas"])))
    replaced = {"backbone": Given(features), "rpn": with_modules(network.rpn, {"head": head})}
    return _run_own_code(network, replaced, images)


def _stand_ins(like: Tensor, size: Size, name: str) -> Tensor:
    """Images without content, (B, 3, H, W): the code of detectors reads their sizes only."""
    if size is None:
        raise SplitError(
            f"the raw outputs of {name} do not say how large the images were; expected "
            "decode(network, raw, size=(height, width))"
        )
    return like.new_zeros(()).expand(len(like), 3, *size)


def _stand_in_features(network: Any, images: Tensor) -> Any:
    """What the backbone returns for such images, without content either: its sizes are worked out without values."""
    backbone = borrow(network.backbone)
    state = {name: value.to("meta") for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    with mode_of(backbone, training=False), torch.no_grad():
        found = functional_call(backbone, state, (torch.empty(images.shape, dtype=images.dtype, device="meta"),))
    return tree_map_only(Tensor, lambda tensor: images.new_zeros(()).expand(tensor.shape), found)


def _run_own_code(network: nn.Module, replaced: Mapping[str, nn.Module], images: Tensor) -> Any:
    def unchanged(_: Any, targets: Any = None) -> Any:
        return SimpleNamespace(tensors=images, image_sizes=[tuple(images.shape[-2:])] * len(images)), targets

    transform = with_modules(network.transform, {})  # type: ignore[arg-type]
    transform.forward = unchanged
    clone = borrow(with_modules(network, {**replaced, "transform": transform}))
    with mode_of(clone, training=False):
        return clone(list(images))


def _has(names: tuple[str, ...]) -> Any:
    return lambda module: all(hasattr(module, name) for name in names)


FORMS = (
    HeadForm(_has(_ONE_STAGE), _raw_one_stage, _decode_one_stage, whole=True),
    HeadForm(_has(_TWO_STAGES), _raw_two_stages, _decode_two_stages, whole=True),
)
