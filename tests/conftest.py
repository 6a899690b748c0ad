"""Lets torchvision's CUDA build be imported next to a CPU build of torch; skips tests of GPUs where there is none.

And what tests of several rooms need.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

define_torchvision_operators()
if torch.cuda.is_available():  # TF32 keeps three digits: what is compared would differ by more than tests allow
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("suite", deadline=None)  # a machine may be busy with other things
    settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` without a CUDA device, unless BRANCHNET_GPU_TESTS=cpu rehearses it on the CPU."""
    if torch.cuda.is_available() or os.environ.get("BRANCHNET_GPU_TESTS") == "cpu":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; there is none"))


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where torch.compile does not work. To ask is to compile something, so only what compiles asks."""
    from branchnet.inference import compiler_problem

    if problem := compiler_problem():
        pytest.skip(f"torch.compile does not work here: {problem}")
