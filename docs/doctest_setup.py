"""What every example of the documentation finds: four small networks and images."""

import warnings

import numpy as np  # noqa: F401
import torch
from torch import nn  # noqa: F401

import branchnet
from branchnet.data import scenes
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

define_torchvision_operators()

warnings.filterwarnings("ignore")
torch.manual_seed(0)


def tiny(outputs=1, kind="dense"):
    """Make a network of a few thousand parameters."""
    return branchnet.create("branchnet:scene_network", outputs=outputs, kind=kind, width=4).eval()


images = scenes(24, seed=0, size=32).images
networks = {"depth": tiny(), "edges": tiny(), "scene": tiny(4, "image"), "count": tiny(1, "image")}
