"""Random numbers of one's own: they start at a seed, and nothing outside is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import branchnet
from branchnet.utils.random_state import seeded


def test_numbers_start_at_the_seed_and_those_outside_go_on() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    before = torch.get_rng_state()
    with seeded(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_devices_whose_state_is_not_put_back_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeds.append)
    for device in (None, torch.device("cpu")):
        with seeded(5, device):
            torch.rand(1)
    x, mean = torch.rand(4, 2), lambda output, target: (output - target).square().mean()
    network, heads = nn.Linear(2, 3), {"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}
    batches, losses = [(x, dict.fromkeys("ab", x[:, :1]))], dict.fromkeys("ab", mean)
    branchnet.gradient_affinity(network, batches, losses, heads=heads, learning_rate=0.1)
    networks = {task: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) for task in "ab"}
    branchnet.rsa(networks, x, locations=["0"], bootstrap=0)
    assert seeds == []
