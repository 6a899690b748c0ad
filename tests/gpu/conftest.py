"""Where the tests of GPUs run. `BRANCHNET_GPU_TESTS=cpu pytest -m gpu tests/gpu` rehearses on a CPU what runs there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> str:
    """Where networks go."""
    return "cpu" if os.environ.get("BRANCHNET_GPU_TESTS") == "cpu" else "cuda"


@pytest.fixture
def cuda(device: str) -> str:
    """The device, of tests that a CPU cannot even rehearse."""
    if device != "cuda":
        pytest.skip("a CPU cannot rehearse this")
    return device
