"""Fast execution: torch.compile, fusion of equal nodes, streams, latencies and tables of them.

It knows branched networks and nothing of training.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
