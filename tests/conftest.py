"""Defines the operators that torchvision's CUDA build registers, so that it imports beside a CPU build of torch.

And what tests of several rooms need.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

_LIBRARIES: list[torch.library.Library] = []


def _define_torchvision_operators() -> None:
    """Give `torchvision::nms` and `qnms` a schema where the compiled extension cannot be loaded."""
    if importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


_define_torchvision_operators()
if torch.cuda.is_available():  # TF32 keeps three digits: what is compared would differ by more than tests allow
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where torch.compile does not work. To ask is to compile something, so only what compiles asks."""
    from branchnet.builder import compiler_problem

    if problem := compiler_problem():
        pytest.skip(f"torch.compile does not work here: {problem}")
