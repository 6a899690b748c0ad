"""Detectors with queries as transformers writes them (DETR, Conditional DETR, YOLOS), by their attributes.

Raw outputs are the logits (B, queries, classes) and boxes (B, queries, 4) of the last layer. Decoding leaves them as
they are, under the attributes that the library's `post_process_object_detection` reads. Layers of the encoder stay in
evaluation mode, without dropout: in training mode DETR's look for infinite values, by which no trace can decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from branchnet.stages.heads.head_form import HeadForm, Size


def _is_query_detector(module: nn.Module) -> bool:
    return hasattr(module, "class_labels_classifier") and hasattr(module, "bbox_predictor")


def _raw(network: nn.Module, pixel_values: Tensor) -> dict[str, Tensor]:
    outputs = type(network).forward(network, pixel_values)
    return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}


def _keep_encoder_in_evaluation(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if name.rpartition(".")[0].endswith("encoder.layers"):
            module.train = partial(_stay_in_evaluation, module)


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module


def _decode(network: nn.Module, raw: Mapping[str, Any], size: Size) -> Any:
    return SimpleNamespace(**raw)


FORMS = (HeadForm(_is_query_detector, _raw, _decode, prepare=_keep_encoder_in_evaluation),)
