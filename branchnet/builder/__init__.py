"""Builder: from a tree and staged networks to a branched network; its weights on disk; its compiled form."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
