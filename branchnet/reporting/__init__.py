"""Costs, latencies, pictures and pages: what was asked, what was found, and what it gains and loses."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
