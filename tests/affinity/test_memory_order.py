"""Images are given channels last where networks can take it, and numbers do not depend on that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import branchnet
from branchnet.affinity.features import memory_order
from branchnet.affinity.features.memory_order import in_fast_order
from branchnet.affinity.probes import read_probe


class Viewing(nn.Module):
    """As many networks of others do, it calls `view` on the result of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 4, 3)
        self.last = nn.Linear(4 * 4 * 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()).view(-1, 4 * 4 * 4))


def convolutional(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()


def test_images_are_laid_out_for_networks_that_can_take_it() -> None:
    x = torch.rand(10, 3, 8, 8)
    probe = read_probe(x, 4)
    for networks, expected in (([convolutional(0)], True), ([convolutional(0), Viewing()], False)):
        batches = list(in_fast_order(probe, networks).batches("this test"))
        assert torch.equal(torch.cat(batches), x)
        assert all(batch.is_contiguous(memory_format=torch.channels_last) == expected for batch in batches)
    assert not in_fast_order(read_probe(torch.rand(10, 5), 4), [nn.Linear(5, 2)]).channels_last


@pytest.mark.filterwarnings("ignore:the probe")
def test_numbers_do_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = nn.functional.interpolate(torch.rand(60, 3, 4, 4), size=(8, 8), mode="bilinear")
    networks = {"a": convolutional(0), "b": convolutional(1)}
    staged = branchnet.split_all(networks, x[:2], locations=["1"])
    tree = branchnet.Tree.shared(["a", "b"], 1)

    def everything() -> list[np.ndarray]:
        found = [measure(staged, x, bootstrap=0).values for measure in (branchnet.rsa, branchnet.stitch_affinity)]
        return [*found, branchnet.build(tree, staged, probe=x).eval()(x)["b"].detach().numpy()]

    fast = everything()
    monkeypatch.setattr(memory_order, "takes_channels_last", lambda *_: False)
    for one, other in zip(fast, everything(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the probe")
def test_networks_that_view_convolutions_are_compared_and_stitched() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 3, 8, 8)
    networks = {"a": Viewing().eval(), "b": Viewing().eval()}
    staged = branchnet.split_all(networks, x[:2], locations=["first"])
    affinity = branchnet.stitch_affinity(staged, x, bootstrap=0)
    branched = branchnet.build(branchnet.Tree.shared(["a", "b"], 1), staged, affinity=affinity, probe=x).eval()
    assert np.isfinite(affinity.values).all() and branched(x)["b"].shape == (40, 2)
