"""Products of a block with itself, by every library that may compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchnet.affinity import products
from branchnet.affinity.products import panelled_product, symmetric_product

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
    block, expected = blocks(count, width, dtype)
    found = symmetric_product(block)
    assert found.dtype == dtype
    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("panel", [1, 50, 512])
def test_panels_as_on_other_devices(panel: int) -> None:
    block, expected = blocks(130, 20, torch.float64)
    found = panelled_product(block, lambda left, right: left @ right.T, panel)
    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-11)
