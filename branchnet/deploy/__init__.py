"""What leaves the process: saved folders, exported files, model cards.

Every file is checked before it replaces another.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
