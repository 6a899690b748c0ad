"""From a tree and staged networks to a branched network.

`network` has the network itself and its surgery, `weights` what its nodes start from.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
