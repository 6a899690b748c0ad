"""The networks of branchnet itself, by the name that `branchnet:NAME` gives them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from branchnet.models.scene import scene_network
from branchnet.models.u_net import unet
from branchnet.models.vgg import thin_vgg16

MODELS: dict[str, Callable[..., nn.Module]] = {"scene_network": scene_network, "thin_vgg16": thin_vgg16, "unet": unet}
"""The networks that `branchnet:NAME` may name."""
