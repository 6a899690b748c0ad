"""What leaves the process: saved folders, exported files, model cards.

Every file is checked before it replaces another.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
