"""Training of branched and single networks: distillation, labels, metrics.

Search and building come before.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
