"""The generator of the device: seeded and put back where it is named, left alone otherwise."""

from __future__ import annotations

import torch

from branchnet.utils.random_state import seeded


def test_only_the_device_that_is_named_is_seeded_and_put_back(device: str) -> None:
    torch.manual_seed(7)
    torch.rand(3, device=device)
    expected = torch.rand(3, device=device)
    torch.manual_seed(7)
    torch.rand(3, device=device)
    with seeded(5, torch.device(device)):
        found = torch.rand(3, device=device)
    with seeded(5):
        torch.rand(3)
    assert torch.equal(torch.rand(3, device=device), expected)
    assert torch.equal(found, torch.rand(3, generator=torch.Generator(device).manual_seed(5), device=device))
