import time

import pytest
import torch

from branchnet import BranchnetError
from branchnet.inference.latency import Latency, compare_latency, measure_latency, ratio_interval

EXAMPLE = torch.zeros(1)


def test_calls_take_turns_and_warm_up():
    calls = []
    functions = {name: lambda x, name=name: calls.append(name) for name in "abc"}
    found = compare_latency(functions, EXAMPLE, repeats=4, warmup=2)
    assert calls[:6] == list("aabbcc")
    rounds = [calls[i : i + 3] for i in range(6, len(calls), 3)]
    assert ["".join(turn) for turn in rounds] == ["abc", "bca", "cab", "abc"]
    assert all(len(latency.samples) == 4 for latency in found.values())


def test_the_longer_call_takes_longer():
    functions = {"short": lambda x: time.sleep(0.001), "long": lambda x: time.sleep(0.02)}
    found = compare_latency(functions, EXAMPLE, repeats=5, warmup=0)
    assert found["long"].low > found["short"].median
    assert found["long"].low >= 0.02


@pytest.mark.parametrize(
    ("example", "expected"),
    [(EXAMPLE, ((1,), {})), ((EXAMPLE, EXAMPLE), ((1, 1), {})), ({"x": EXAMPLE}, ((), {"x": 1}))],
)
def test_examples_are_passed_as_networks_take_them(example, expected):
    seen = []

    def function(*args, **kwargs):
        seen.append((tuple(a.numel() for a in args), {k: v.numel() for k, v in kwargs.items()}))

    measure_latency(function, example, repeats=1, warmup=0)
    assert seen == [expected]


def test_no_gradients_are_recorded():
    weight = torch.ones(1, requires_grad=True)
    results = []
    measure_latency(lambda x: results.append((x * weight).requires_grad), EXAMPLE, repeats=1)
    assert not any(results)


def test_median_and_percentiles():
    latency = Latency(tuple(i / 10 for i in range(11)))
    assert (latency.low, latency.median, latency.high) == pytest.approx((0.1, 0.5, 0.9))


def test_ratio_interval_is_exact_without_spread_and_covers_with_it():
    assert ratio_interval(Latency((0.4,) * 5), Latency((0.2,) * 5)) == pytest.approx((2, 2, 2))
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.rand(2, 60, generator=generator)
    ratio, low, high = ratio_interval(Latency((0.3 + noise[0]).tolist()), Latency((0.1 + noise[1]).tolist()))
    assert low < ratio < high
    assert low < 0.325 / 0.125 < high


def test_ratios_need_paired_samples():
    with pytest.raises(BranchnetError, match="5 and 4 samples"):
        ratio_interval(Latency((0.4,) * 5), Latency((0.2,) * 4))


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_impossible_counts_are_refused(repeats, warmup):
    with pytest.raises(BranchnetError, match="expected repeats >= 1"):
        measure_latency(lambda x: x, EXAMPLE, repeats=repeats, warmup=warmup)
