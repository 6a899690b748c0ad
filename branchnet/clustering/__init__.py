"""From affinities and costs to trees: objectives, budgets, search with proofs, stability.

Numbers only: no torch.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
