"""Training of branched and single networks: distillation, labels, metrics.

Search and building come before.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__, needs={"LightningBranched": "lightning"})
