"""What a network costs and gains, as tables, plots and one offline page.

Nothing is trained or searched here.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
