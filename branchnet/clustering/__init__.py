"""From affinities and costs to trees: objectives, budgets, search with proofs, stability.

Numbers only: no torch.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
