"""Sizes that a decoder computes belong to no module of the backbone, wherever tracing notes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet


class Dense(nn.Module):
    """An encoder and a decoder that resizes to the sizes of earlier features; its own code decides by sizes."""

    def __init__(self, *, skips: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4))
        self.layer2 = nn.Conv2d(4, 4, 3, 2, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 8 or x.shape[-2] % 8:
            raise ValueError("the sizes are no multiples of 8")
        first = self.bn1(self.conv1(x))
        second = self.layer1(first)
        third = self.layer2(second)
        if self.skips:
            up = F.interpolate(third, scale_factor=2.0) + second
            return self.last(F.interpolate(up, size=(first.shape[-2] * 2, first.shape[-1] * 2)))
        return self.last(F.interpolate(third, size=(x.shape[-2] // 2, x.shape[-1] // 2)))


def test_it_can_be_cut_there_in_training_too() -> None:
    torch.manual_seed(0)
    networks = {"a": Dense(skips=True).eval(), "b": Dense(skips=False).eval()}
    staged = branchnet.split_all(networks, torch.rand(1, 3, 16, 16), locations=["bn1", "layer1"])
    assert staged["a"].traced_by == "export"
    assert all(one.trainable for one in staged.values()), staged["a"].eval_only
    x = torch.rand(2, 3, 24, 16)
    for task, network in networks.items():
        torch.testing.assert_close(staged[task](x), network(x))
