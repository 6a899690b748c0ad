"""branchnet: from N trained single-task networks to one branched network.

Importing this package imports no torch: the public names, listed in `__init__.pyi`, are resolved when first used.
"""

from branchnet.utils.lazy import attach_stub

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
