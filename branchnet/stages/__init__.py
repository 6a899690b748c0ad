"""Any PyTorch network as a chain of stages that can be shared, copied and counted."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
