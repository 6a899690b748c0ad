"""branchnet: from N trained single-task networks to one branched network.

Importing this package imports no torch: the public names, listed in `__init__.pyi`, are resolved when first used. The
version stands here alone; hatch reads it when a wheel is built.
"""

from branchnet.utils.lazy import attach_stub

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
