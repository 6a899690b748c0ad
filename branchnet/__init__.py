"""branchnet: from N trained single-task networks to one branched network.

Importing this package imports no torch: the public names, listed in `__init__.pyi`, are resolved when first used.
"""

from branchnet.utils.lazy import attach_stub
from branchnet.utils.version import __version__ as __version__

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
