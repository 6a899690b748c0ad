"""The YAML file that says what a branched network is: reading, validating, writing, building from it.

Weights are not part of it.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
