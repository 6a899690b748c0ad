"""Training: distillation without labels, supervised training, and the metrics that judge both."""

from branchnet.utils.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
