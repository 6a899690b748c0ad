"""Layer-wise affinities between tasks: representation similarity, gradients, measured pairs.

It knows nothing of trees.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
