"""Which dimension holds the channels, where layers read them after the tensor was turned, pooled or flattened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.stitching.channels import channel_dimension


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of images, as torchvision and timm have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Code(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.first, self.before, self.layer = nn.ReLU(), before, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(self.first(x)))  # type: ignore[no-any-return]


IMAGES, ROWS, TOKENS, VECTORS = (2, 4, 8, 8), (2, 8, 8, 4), (2, 9, 4), (2, 4)


@pytest.mark.parametrize(
    ("before", "layer", "shape", "dimension"),
    [
        (nn.Identity(), nn.Conv2d(4, 4, 1), IMAGES, 1),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 2), IMAGES, 1),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(256, 2), IMAGES, 1),
        (lambda x: x.mean([2, 3]), nn.Linear(4, 2), IMAGES, 1),
        (lambda x: x.mean((1, 2)), nn.Linear(4, 2), ROWS, 3),
        (lambda x: x.permute(0, 2, 3, 1), nn.LayerNorm(4), IMAGES, 1),
        (lambda x: torch.permute(x, (0, 3, 1, 2)), nn.Conv2d(4, 4, 1), ROWS, 3),
        (lambda x: x.transpose(1, 2), nn.Conv1d(4, 4, 1), TOKENS, 2),
        (lambda x: x.transpose(1, 2), nn.Linear(9, 9), (2, 9, 4), 1),
        (nn.Identity(), nn.LayerNorm(4), TOKENS, 2),
        (lambda x: x.mean(1), nn.Linear(4, 2), TOKENS, 2),
        (nn.Dropout(), nn.Linear(4, 2), VECTORS, 1),
        (lambda x: x.mean(dim=(2, 3)), nn.Linear(4, 2), IMAGES, 1),
        (lambda x: torch.mean(x, dim=[2, 3]), nn.Linear(4, 2), IMAGES, 1),
        (lambda x: x.sum(dim=(1, 2)), nn.Linear(4, 2), ROWS, 3),
        (lambda x: x.amax((2, 3)), nn.Linear(4, 2), IMAGES, 1),
        (lambda x: x.mean(dim=2), nn.Linear(9, 2), (2, 9, 4), 1),
        (nn.Identity(), LayerNorm2d(4), IMAGES, 1),
        (nn.Identity(), nn.LayerNorm(4), ROWS, 3),
    ],
)
def test_the_dimension_is_the_one_that_the_layer_reads(
    before: Callable[[Tensor], Tensor], layer: nn.Module, shape: tuple[int, ...], dimension: int
) -> None:
    x = torch.randn(shape)
    staged = branchnet.split(Code(before, layer).eval(), x, locations=["first"])
    assert channel_dimension(staged.stages[0], staged.head, 0, staged.stages[0](x)[0]) == dimension


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("torchvision:convnext_tiny", 1),
        ("torchvision:swin_t", 3),
        ("torchvision:resnet18", 1),
        ("torchvision:vit_b_16", 2),
        ("timm:convnextv2_atto", 1),
        ("timm:swin_tiny_patch4_window7_224", 3),
        ("timm:edgenext_xx_small", 1),
        ("timm:poolformerv2_s12", 1),
    ],
)
def test_backbones_have_their_channels_where_their_features_do_not_change_with_the_size(
    name: str, dimension: int
) -> None:
    """Channels are as many at every size of images; positions are not."""
    network = branchnet.create(name).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        staged = branchnet.split(network, x, locations=3)
        cut = x
        for d, stage in enumerate(staged.stages):
            cut = stage(cut) if d == 0 else stage(*cut)
            after = [*staged.stages[1:], staged.head][d]
            for index, value in enumerate(cut):
                if value.dim() == (3 if dimension == 2 else 4):
                    assert channel_dimension(stage, after, index, value) == dimension, (name, staged.locations[d])
