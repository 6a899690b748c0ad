"""Which dimension holds the channels, where layers read them after the tensor was turned, pooled or flattened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from branchnet.stitching.channels import channel_dimension


class Code(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer = before, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))  # type: ignore[no-any-return]


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
    ],
)
def test_the_dimension_is_the_one_that_the_layer_reads(
    before: Callable[[Tensor], Tensor], layer: nn.Module, shape: tuple[int, ...], dimension: int
) -> None:
    code = Code(before, layer)
    x = torch.randn(shape)
    code(x)  # it runs
    assert channel_dimension(fx.symbolic_trace(code).graph, code, 0, x) == dimension
