"""What a network costs and gains, as tables, plots and one offline page.

Nothing is trained or searched here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
