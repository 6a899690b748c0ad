from .images import ImageFolder as ImageFolder
from .images import load_images as load_images
from .images import to_images as to_images
from .procedural.layouts import LAYOUTS as LAYOUTS
from .procedural.rendering import FAR as FAR
from .procedural.scene_dataset import SEGMENTS as SEGMENTS
from .procedural.scene_dataset import Scenes as Scenes
from .procedural.scene_dataset import scenes as scenes

__all__ = [
    "FAR",
    "ImageFolder",
    "LAYOUTS",
    "SEGMENTS",
    "Scenes",
    "load_images",
    "scenes",
    "to_images",
]
