"""Weights of torchvision may stand for their transforms, which then are those that torchvision makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet.errors import SplitError

models = pytest.importorskip("torchvision.models")
WEIGHTS = models.ResNet18_Weights.DEFAULT


@pytest.mark.parametrize("given", [WEIGHTS, WEIGHTS.transforms, WEIGHTS.transforms()], ids=["enum", "maker", "module"])
def test_weights_stand_for_their_transforms(given: Any) -> None:
    networks: dict[str, nn.Module] = {"a": models.resnet18(num_classes=2).eval(), "b": models.resnet18().eval()}
    image = torch.rand(1, 3, 100, 120)
    staged = branchnet.split_all(networks, image, locations=["layer2"], transforms=dict.fromkeys("ab", given))
    with torch.no_grad():
        torch.testing.assert_close(staged["a"](image), networks["a"](WEIGHTS.transforms()(image)))


@pytest.mark.parametrize("given", [lambda x: x, "ResNet18_Weights.DEFAULT", [nn.Identity()]])
def test_what_is_no_transform_is_refused(given: Any) -> None:
    networks = {task: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)) for task in "ab"}
    with pytest.raises(SplitError, match=r"transform of 'b' is a \w+; expected an nn.Module, or weights"):
        branchnet.split_all(networks, torch.rand(1, 3), transforms={"b": given})
