"""From affinities, costs and a budget to the best tree of shared stages. This room imports no torch."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
