"""Networks made by name, and the small networks of the demo, of examples and of published trees.

Nothing here is trained; weights are loaded elsewhere.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
