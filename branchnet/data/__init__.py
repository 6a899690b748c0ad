"""Samples as users have them, images from files, and procedural scenes.

No network is run here.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
