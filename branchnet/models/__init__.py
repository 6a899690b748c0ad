"""Networks made by name, and the small networks of the demo, of examples and of published trees.

Nothing here is trained; weights are loaded elsewhere.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
