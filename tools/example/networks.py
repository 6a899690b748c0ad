"""Three ResNet-18 with random weights, each its own: stand-ins for networks that were really trained.

They need torchvision: `pip install 'branchnet[vision]'`.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import resnet18


def animals() -> nn.Module:
    return _resnet18(classes=10, seed=0)


def plants() -> nn.Module:
    return _resnet18(classes=20, seed=1)


def sharpness() -> nn.Module:
    return _resnet18(classes=1, seed=2)


def _resnet18(classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(num_classes=classes)
