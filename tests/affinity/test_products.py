"""Products of a block with itself, by every library that may compute them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from branchnet.affinity.measures import symmetric_matmul as products
from branchnet.affinity.measures.symmetric_matmul import add_panels, add_symmetric_product, full_precision, mirrored

Add = Callable[[torch.Tensor, torch.Tensor], None]

SHAPES = [(1, 10), (63, 7), (64, 100), (65, 1), (130, 300), (257, 40)]


def blocks(count: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    block = torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    exact = block.double().numpy()
    return block, exact @ exact.T


@pytest.mark.parametrize(("count", "width"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("panels", [False, True])
def test_equals_numpy(
    count: int, width: int, dtype: torch.dtype, panels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if panels and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "_onednn_is_wider", lambda: panels)
    check(dtype, *blocks(count, width, dtype), add_symmetric_product)


@pytest.mark.parametrize("panel", [1, 50, 512])
def test_panels_as_on_other_devices(panel: int) -> None:
    def add(total: torch.Tensor, block: torch.Tensor) -> None:
        add_panels(total, block, lambda left, right: left @ right.T, panel)

    check(torch.float64, *blocks(130, 20, torch.float64), add)


def check(dtype: torch.dtype, block: torch.Tensor, expected: np.ndarray, add: Add) -> None:
    """Two products add up; rounding errors of sums grow as the root of their length."""
    total = torch.zeros(expected.shape, dtype=torch.float64)
    add(total, block)
    add(total, block)
    found = mirrored(total)
    assert torch.equal(found, found.T)
    rounding = torch.finfo(dtype).eps * block.shape[1] ** 0.5
    np.testing.assert_allclose(found.numpy(), 2 * expected, rtol=0, atol=2 * rounding * expected.max())


def test_permission_for_low_precision_does_not_count() -> None:
    """What the caller allows networks is switched off for products, and on again, also after an error."""
    block, _ = blocks(8, 5, torch.float32)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with full_precision(block.device):
                assert (block @ block.T).dtype == torch.float32
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            with pytest.raises(KeyError), full_precision(block.device):
                raise KeyError
            assert (block @ block.T).dtype == torch.bfloat16
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
