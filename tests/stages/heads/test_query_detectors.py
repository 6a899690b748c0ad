"""DETR-like networks of transformers, as small as they get."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import branchnet

transformers = pytest.importorskip("transformers")


def yolos() -> nn.Module:
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=3,
    )
    return transformers.YolosForObjectDetection(config).eval()


def test_raw_outputs_are_logits_and_boxes_in_both_modes() -> None:
    torch.manual_seed(0)
    network = yolos()
    raw = branchnet.raw_heads(network)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = network(images), raw(images)
        decoded = branchnet.decode(network, found)
    assert list(found) == list(raw.train()(images)) == ["logits", "pred_boxes"]
    assert torch.equal(decoded.logits, expected.logits) and torch.equal(decoded.pred_boxes, expected.pred_boxes)


@pytest.mark.slow
def test_detr_can_be_split_and_trained() -> None:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=3,
    )
    raw = branchnet.raw_heads(transformers.DetrForObjectDetection(config).eval())
    images = torch.rand(2, 3, 64, 64)
    staged = branchnet.split(raw, images)
    assert staged.trainable, staged.eval_only
    torch.testing.assert_close(staged(images), raw(images))
