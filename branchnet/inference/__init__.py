"""Fast execution: torch.compile, fusion of equal nodes, streams, latencies and tables of them.

It knows branched networks and nothing of training.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
