"""From a tree and staged networks to a branched network.

`network` has the network itself and its surgery, `weights` what its nodes start from.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
