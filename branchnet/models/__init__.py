"""branchnet's own networks, for the demo, for examples and for published trees that no other library has."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from branchnet.models.scene import BasicBlock, SceneNetwork, scene_network
from branchnet.models.unet import UNet, unet
from branchnet.models.vgg import ThinVgg16, thin_vgg16

__all__ = ["MODELS", "BasicBlock", "SceneNetwork", "ThinVgg16", "UNet", "scene_network", "thin_vgg16", "unet"]

MODELS: dict[str, Callable[..., nn.Module]] = {"scene_network": scene_network, "thin_vgg16": thin_vgg16, "unet": unet}
"""The networks that `branchnet:NAME` may name."""
