"""Any PyTorch network as a chain of stages that can be shared, copied and counted.

How a graph is captured lies in `tracing`, what is known about it in `graph`, the code that runs it in `codegen`.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
