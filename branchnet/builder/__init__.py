"""Builder: from a tree and staged networks to a branched network; its weights on disk; its compiled form."""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
