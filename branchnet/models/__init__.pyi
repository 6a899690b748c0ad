from .constructors import Constructor as Constructor
from .constructors import constructor_of as constructor_of
from .constructors import create as create
from .own_networks import MODELS as MODELS
from .scene import BasicBlock as BasicBlock
from .scene import SceneNetwork as SceneNetwork
from .scene import scene_network as scene_network
from .timm_networks import from_timm as from_timm
from .u_net import UNet as UNet
from .u_net import unet as unet
from .vgg import ThinVgg16 as ThinVgg16
from .vgg import thin_vgg16 as thin_vgg16

__all__ = [
    "MODELS",
    "BasicBlock",
    "Constructor",
    "SceneNetwork",
    "ThinVgg16",
    "UNet",
    "constructor_of",
    "create",
    "from_timm",
    "scene_network",
    "thin_vgg16",
    "unet",
]
