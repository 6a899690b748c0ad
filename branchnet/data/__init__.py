"""Data: procedural scenes with their labels, and images from folders and arrays."""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
