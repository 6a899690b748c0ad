"""torchvision next to another build of torch than its own, for tests and benchmarks on CPUs."""

from __future__ import annotations

import functools
import importlib.util

import torch


@functools.cache
def define_torchvision_operators() -> torch.library.Library | None:
    """Give `torchvision::nms` and `qnms` a schema, so that torchvision imports next to a CPU build of torch.

    torchvision's wheel for CUDA registers both in an extension that a CPU build of torch cannot load, and importing it
    fails without them. Models, transforms and data sets work then; the operators themselves cannot be called.

    Returns:
        The library that holds the definitions as long as it is kept; None where nothing had to be defined, as they were
        there before.
    """
    if importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None:
        return None
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
