from .images import ImageFolder as ImageFolder
from .images import load_images as load_images
from .images import to_images as to_images
from .layouts import LAYOUTS as LAYOUTS
from .procedural import SEGMENTS as SEGMENTS
from .procedural import Scenes as Scenes
from .procedural import scenes as scenes
from .rendering import FAR as FAR

__all__ = ["FAR", "LAYOUTS", "SEGMENTS", "ImageFolder", "Scenes", "load_images", "scenes", "to_images"]
