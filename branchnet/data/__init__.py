"""Data: procedural scenes with their labels, and images from folders and arrays."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
