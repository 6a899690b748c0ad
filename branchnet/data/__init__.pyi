from .layouts import LAYOUTS as LAYOUTS
from .procedural import SEGMENTS as SEGMENTS
from .procedural import Scenes as Scenes
from .procedural import scenes as scenes
from .rendering import FAR as FAR

__all__ = ["FAR", "LAYOUTS", "SEGMENTS", "Scenes", "scenes"]
