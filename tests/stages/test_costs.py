"""Costs against fvcore itself, torch's own counter and numbers derived by hand."""

from itertools import pairwise

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_count
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from branchnet.stages import candidate_locations, count_flops, split
from branchnet.stages.flop_formulas import convolution_flops
from branchnet.stages.flops import OperatorCounter
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


def torchs_count(run):
    """Multiply-adds of the matrix products that `run` dispatches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lstm_counts_what_its_single_steps_count(layers: int, bidirectional: bool, batch_first: bool) -> None:
    network = nn.LSTM(8, 6, layers, bidirectional=bidirectional, batch_first=batch_first).eval()
    sequences = torch.randn(3, 5, 8)
    with torch.backends.mkldnn.flags(enabled=False):  # without oneDNN torch runs the steps one by one
        steps = torchs_count(lambda: network(sequences))
    assert count_flops(network, (sequences,)) == (steps, ())
    if layers == 1 and not bidirectional:
        assert steps == 3 * 5 * 4 * 6 * (8 + 6)


def test_lstm_on_gpus_counts_as_on_cpus() -> None:
    """The operator of cuDNN, on tensors without data; packed, it takes all steps of all sequences in one dimension."""

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    weights, state = [meta(24, 8), meta(24, 6), meta(24), meta(24)], meta(1, 3, 6)
    mode, hidden = 2, 6  # cuDNN's number of an LSTM
    for steps, sizes in ((meta(5, 3, 8), []), (meta(15, 8), [3] * 5)):
        with OperatorCounter() as counter:
            torch.ops.aten._cudnn_rnn(
                steps, weights, 4, None, state, state, mode, hidden, 0, 1, False, 0.0, False, False, sizes, None
            )
        assert (counter.flops, dict(counter.unsupported)) == (5 * 3 * 24 * (8 + 6), {})


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.recurrent, self.last = nn.Embedding(20, 16), kind(16, 64, batch_first=True), nn.Linear(64, 3)

    def forward(self, tokens):
        return self.last(self.recurrent(self.embed(tokens))[0][:, -1])


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_stages_of_recurrent_networks_by_hand(kind: type[nn.Module], gates: int) -> None:
    staged = split(Recurrent(kind).eval(), torch.randint(0, 20, (2, 50)), locations=["embed", "recurrent"])
    assert staged.costs.flops == (0, 2 * 50 * gates * 64 * (16 + 64))
    assert (staged.costs.uncounted, staged.head_cost.flops) == ((), 2 * 64 * 3)


def test_bilinear_layer_counts_its_two_contractions() -> None:
    left, right, layer = torch.randn(5, 8), torch.randn(5, 7), nn.Bilinear(8, 7, 3, bias=False)

    def contractions():
        weighted = (left @ layer.weight.permute(1, 0, 2).reshape(8, 21)).view(5, 3, 7)
        torch.testing.assert_close(torch.bmm(weighted, right[:, :, None])[..., 0], layer(left, right))

    assert count_flops(layer, (left, right)) == (torchs_count(contractions), ())


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_products_that_end_in_one_sum_count_as_the_products() -> None:
    total, left, right = torch.zeros(3, 4), torch.randn(5, 3, 8), torch.randn(5, 8, 4)
    assert count_flops(Calls(torch.addbmm), (total, left, right)) == (torchs_count(lambda: left @ right), ())
    column, row = torch.randn(3), torch.randn(4)
    outer = torchs_count(lambda: column[:, None] @ row[None])
    assert count_flops(Calls(torch.addr), (total, column, row)) == (outer, ())
    assert count_flops(Calls(torch.vdot), (row, row)) == (4, ())


@pytest.mark.parametrize("points", [7, 40])  # from 26 points on torch takes another operator
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_distances_count_every_feature_of_every_pair(points: int, p: float) -> None:
    x, y = torch.randn(2, points, 8), torch.randn(2, 6, 8)
    distances = Calls(lambda x, y: torch.cdist(x, y, p=p))
    assert count_flops(distances, (x, y)) == (2 * points * 6 * 8, ())
    assert count_flops(Calls(nn.functional.pdist), (x[0],)) == (points * (points - 1) // 2 * 8, ())


def test_complex_products_count_the_real_products_that_they_take() -> None:
    x, weight = torch.randn(2, 4, dtype=torch.complex64), torch.randn(4, 6, dtype=torch.complex64)

    product = x @ weight

    def real_products():
        a, b, c, d = x.real.contiguous(), x.imag.contiguous(), weight.real.contiguous(), weight.imag.contiguous()
        torch.testing.assert_close(torch.complex(a @ c - b @ d, a @ d + b @ c), product)

    assert count_flops(Calls(torch.matmul), (x, weight)) == (torchs_count(real_products), ())
    image, layer = torch.randn(1, 2, 5, 5, dtype=torch.complex64), nn.Conv2d(2, 3, 3, dtype=torch.complex64)
    convolved = layer(image)

    def real_convolutions():  # Gauss: ac - bd and ad + bc from ac, bd and (a + b)(c + d)
        w, conv = layer.weight, torch.nn.functional.conv2d
        a, b = conv(image.real, w.real), conv(image.imag, w.imag)
        c = conv(image.real + image.imag, w.real + w.imag)
        torch.testing.assert_close(torch.complex(a - b, c - a - b) + layer.bias[:, None, None], convolved)

    assert count_flops(layer, (image,)) == (torchs_count(real_convolutions), ())


def test_stages_name_what_they_count_as_nothing() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Calls(torch.linalg.inv), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    staged = split(network, torch.eye(4) + torch.ones(4, 4), locations=["0", "1", "2"])
    assert [cost.uncounted for cost in staged.costs] == [(), ("linalg_inv_ex",), ()]
    assert staged.costs.uncounted == ("linalg_inv_ex",)
    assert staged.head_cost.uncounted == ()


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
