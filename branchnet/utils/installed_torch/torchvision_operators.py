"""torchvision next to another build of torch than its own, for tests and benchmarks on CPUs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

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


def import_with_torchvision(name: str) -> ModuleType:
    """Import a module, which may import torchvision where its wheel does not fit the build of torch.

    Args:
        name: of the module.

    Returns:
        The module.

    Raises:
        Exception: what importing it raises; for torchvision's operators only where defining them does not help.
    """
    known = set(sys.modules)
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or define_torchvision_operators() is None:
            raise
    for half_imported in set(sys.modules) - known:
        del sys.modules[half_imported]
    return importlib.import_module(name)
