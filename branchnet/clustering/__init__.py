"""From affinities, costs and a budget to the best tree of shared stages. This room imports no torch."""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
