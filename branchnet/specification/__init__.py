"""The YAML file that says what a branched network is: reading, validating, writing, building from it.

Weights are not part of it.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
