"""Detectors of torchvision on a small backbone, with random weights and transforms that leave images' sizes alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 64
_CHANNELS = 32


def _layer(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, _CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(_CHANNELS), nn.ReLU(inplace=True)
    )


class Backbone(nn.Module):
    """Two maps, of an eighth and a sixteenth of the images' size."""

    out_channels = _CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3), _layer(_CHANNELS))
        self.third, self.fourth = _layer(_CHANNELS), _layer(_CHANNELS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        third = self.third(self.stem(x))
        return OrderedDict([("0", third), ("1", self.fourth(third))])


def _shared(classes: int) -> dict[str, Any]:
    return {"num_classes": classes, "min_size": SIZE, "max_size": SIZE}


def _anchors(ratios: int) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0)[:ratios],) * 2)


def _ssd(classes: int) -> nn.Module:
    from torchvision.models import detection

    boxes = detection.ssd.DefaultBoxGenerator([[2], [2]])
    head = detection.ssd.SSDHead([_CHANNELS] * 2, boxes.num_anchors_per_location(), classes)
    return detection.ssd.SSD(Backbone(), boxes, (SIZE, SIZE), classes, head=head, topk_candidates=20)


def _retinanet(classes: int) -> nn.Module:
    from torchvision.models import detection

    return detection.RetinaNet(Backbone(), topk_candidates=20, anchor_generator=_anchors(3), **_shared(classes))


def _fcos(classes: int) -> nn.Module:
    from torchvision.models import detection

    return detection.FCOS(Backbone(), topk_candidates=20, anchor_generator=_anchors(1), **_shared(classes))


def _two_stages(classes: int) -> dict[str, Any]:
    from torchvision.ops import MultiScaleRoIAlign

    pooler = MultiScaleRoIAlign(["0", "1"], 3, 2)
    return _shared(classes) | {
        "rpn_anchor_generator": _anchors(3),
        "box_roi_pool": pooler,
        "box_score_thresh": 0.0,
        "rpn_pre_nms_top_n_test": 20,
    }


def _faster_rcnn(classes: int) -> nn.Module:
    from torchvision.models import detection

    return detection.FasterRCNN(
        Backbone(), box_detections_per_img=5, rpn_post_nms_top_n_test=20, **_two_stages(classes)
    )


def _keypoint_rcnn(classes: int) -> nn.Module:
    from torchvision.models import detection
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    return detection.KeypointRCNN(
        Backbone(),
        box_detections_per_img=3,
        keypoint_roi_pool=MultiScaleRoIAlign(["0", "1"], 4, 2),
        keypoint_head=KeypointRCNNHeads(_CHANNELS, (_CHANNELS,)),
        keypoint_predictor=KeypointRCNNPredictor(_CHANNELS, 5),
        **_two_stages(classes),
    )


DETECTORS: dict[str, Callable[[int], nn.Module]] = {
    "ssd": _ssd,
    "retinanet": _retinanet,
    "fcos": _fcos,
    "faster_rcnn": _faster_rcnn,
    "keypoint_rcnn": _keypoint_rcnn,
}


def detector(name: str, seed: int = 0, classes: int = 3) -> Any:
    """A detector whose scores are spread enough that some detections pass its threshold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DETECTORS[name](classes).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
        for key, parameter in network.named_parameters():
            if "cls_logits" in key or ("classification_head" in key and "module_list" in key):
                nn.init.normal_(parameter, 0, 0.5)
    return network


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy suppression, as torchvision's compiled operator does it where one is installed."""
    from torchvision.ops.boxes import box_iou

    order = [int(k) for k in scores.argsort(descending=True, stable=True)]
    overlaps, kept = box_iou(boxes.detach(), boxes.detach()), list[int]()
    for k in order:
        if all(float(overlaps[k, other]) <= threshold for other in kept):
            kept.append(k)
    return torch.tensor(kept, dtype=torch.int64)
