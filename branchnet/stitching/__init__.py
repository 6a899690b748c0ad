"""Stitching layers: affine maps, fitted in closed form, that let one network's features enter another network.

Here are the maps, their fit, and the distances between outputs that judge them. Which edges of a tree need one, builder
says; which tree is best with them, affinity and clustering.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
