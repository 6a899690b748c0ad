"""Costs against fvcore itself, torch's own counter and numbers derived by hand."""

from itertools import pairwise

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_count
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from branchnet.stages import candidate_locations, count_flops, split
from branchnet.stages.flops import convolution_flops
from tests.stages.toys import Block

IMAGE = torch.randn(2, 4, 8, 8)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=2), Block(), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2, 2),
        nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2, mode="bilinear"), Block(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(x)
        return self.last(x + self.attention(y, y, y, need_weights=False)[0])


def test_convolutional_network_counts_as_fvcore_counts():
    network = convolutional()
    staged = split(network, IMAGE)
    total = sum(staged.costs.flops) + staged.head_cost.flops
    assert total == FlopCountAnalysis(network, IMAGE).unsupported_ops_warnings(False).total()
    assert count_flops(network, (IMAGE,))[0] == total


def test_attention_counts_its_products():
    network, tokens = Attends().eval(), torch.randn(2, 5, 8)
    projections = 2 * 5 * 8 * (24 + 8) + 2 * 5 * 8 * 3
    products = 2 * 2 * (2 * 5 * 5 * 4)
    normalisation = 5 * 2 * 5 * 8
    assert count_flops(network, (tokens,)) == (projections + products + normalisation, ())
    staged = split(network, tokens, locations=["attention"])
    assert staged.costs.flops[0] + staged.head_cost.flops == projections + products + normalisation


@pytest.mark.parametrize("make", [convolutional, Attends])
def test_agrees_with_torchs_counter_up_to_what_that_does_not_count(make):
    network = make().train()
    example = IMAGE if make is convolutional else torch.randn(2, 5, 8)
    own = count_flops(network, (example,))[0]
    with FlopCounterMode(display=False) as counter:
        network(example)
    assert counter.get_total_flops() / 2 <= own <= 1.6 * counter.get_total_flops() / 2


def test_pooling_and_softmax_are_no_unsupported_operators_but_a_transform_is():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x.softmax(-1)).abs()

    assert count_flops(Fourier(), (torch.randn(2, 8),)) == (0, ("_fft_r2c",))


def test_sum_over_stages_is_the_whole_at_every_cut():
    network = convolutional()
    whole = count_flops(network, (IMAGE,))[0]
    params = sum(p.numel() for p in network.parameters())
    for place in candidate_locations(network, IMAGE):
        staged = split(network, IMAGE, locations=[place.name])
        assert sum(staged.costs.flops) + staged.head_cost.flops == whole
        assert sum(staged.costs.params) + staged.head_cost.params == params
        assert (staged.costs[0].params, staged.costs[0].flops) == (place.params, place.flops)
        assert staged.costs[0].cut_bytes == place.cut_bytes == sum(t.nbytes for t in staged.stages[0](IMAGE))


def test_activation_bytes_by_hand():
    network = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten(), nn.Linear(128, 3))
    staged = split(network, IMAGE, locations=["1"])
    assert staged.costs[0].activation_bytes == 2 * (2 * 6 * 64 * 4)


def test_balanced_locations_are_the_best_of_all():
    widths = (4, 8, 8, 16, 4, 12, 6)
    network = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)), nn.Linear(6, 2))
    staged = split(network, torch.randn(1, 4), locations=3)
    cost = [a * b + b for a, b in pairwise(widths)]
    flops = [a * b for a, b in pairwise(widths)]
    whole = (sum(cost) + 14, sum(flops) + 12)
    share = [c / whole[0] + f / whole[1] for c, f in zip(cost, flops, strict=True)]

    def unevenness(ends):
        starts = (0, *(end + 1 for end in ends))
        return sum(sum(share[a : b + 1]) ** 2 for a, b in zip(starts, ends, strict=False))

    best = min(((a, b, 5) for b in range(1, 5) for a in range(b)), key=unevenness)
    assert staged.locations == tuple(map(str, best))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_formula_for_machines_without_fvcore_is_fvcores(dimensions: int, groups: int, transposed: bool) -> None:
    x, out, kernel = [2, 8, *[5, 6, 7][:dimensions]], [2, 12, *[9, 4, 3][:dimensions]], [3] * dimensions
    weight = [8, 12 // groups, *kernel] if transposed else [12, 8 // groups, *kernel]
    assert convolution_flops(x, weight, out, transposed=transposed) == conv_flop_count(x, weight, out, transposed)
