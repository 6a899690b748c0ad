"""Costs, latencies, pictures and pages: what was asked, what was found, and what it gains and loses."""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
