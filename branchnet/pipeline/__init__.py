"""The whole way from trained networks to one branched network: `branchnet.run`, its steps, its config and its plan.

What `branchnet run` and `branchnet demo` do is here and can be called from Python. Reading a command line and printing
are not: they belong to the command.
"""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
