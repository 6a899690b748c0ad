"""branchnet: from N trained single-task networks to one branched network.

Importing this package imports no torch: the public names, listed in `__init__.pyi`, are resolved when first used.
"""

import lazy_loader as lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
