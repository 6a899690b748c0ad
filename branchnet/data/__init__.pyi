from .images import ImageFolder as ImageFolder
from .images import load_images as load_images
from .images import to_images as to_images
from .procedural.layouts import LAYOUTS as LAYOUTS
from .procedural.rendering import FAR as FAR
from .procedural.scene_dataset import SEGMENTS as SEGMENTS
from .procedural.scene_dataset import Scenes as Scenes
from .procedural.scene_dataset import scenes as scenes
from .samples import Batch as Batch
from .samples import Samples as Samples
from .samples import read_samples as read_samples

__all__ = [
    "Batch",
    "FAR",
    "ImageFolder",
    "LAYOUTS",
    "SEGMENTS",
    "Samples",
    "Scenes",
    "load_images",
    "read_samples",
    "scenes",
    "to_images",
]
