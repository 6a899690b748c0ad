"""Random numbers of one's own: they start at a seed, and nothing outside is touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import branchnet
from branchnet.utils.random_state import seeded, with_own_state


def test_numbers_start_at_the_seed_and_those_outside_go_on() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    before = torch.get_rng_state()
    with seeded(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_items_with_a_state_of_their_own_do_not_depend_on_what_is_drawn_between_them(
    cuts: list[int], seed: int
) -> None:
    own = torch.Generator().manual_seed(9)

    def draw() -> Iterator[Tensor]:
        for cut in cuts:
            yield torch.cat([torch.rand(cut), torch.rand(cut, generator=own)])

    torch.manual_seed(3)
    outside = torch.rand(sum(cuts))
    torch.manual_seed(3)
    found, between = [], []
    for item, cut in zip(with_own_state(draw(), seed, [own]), cuts, strict=True):
        found.append(item)
        between.append(torch.rand(cut))
        own.manual_seed(cut)
    assert torch.equal(torch.cat(between), outside) and own.initial_seed() == cuts[-1]
    assert all(map(torch.equal, found, with_own_state(draw(), seed, [own])))
    halves = [item.chunk(2) for item in found]
    expected = torch.Generator().manual_seed(seed)
    torch.randint(2**62, (), generator=expected)  # the seed of the other generator
    assert torch.equal(
        torch.cat([half for half, _ in halves]), torch.cat([torch.rand(n, generator=expected) for n in cuts])
    )
    assert not torch.equal(halves[0][0], halves[0][1])


def test_the_state_outside_is_put_back_after_an_error_as_well() -> None:
    def draw() -> Iterator[Tensor]:
        yield torch.rand(1)
        raise ValueError(torch.rand(1))

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="tensor"):
        list(with_own_state(draw(), 1))
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
