"""Quantised networks: against the eager network, against bytes on disk, and against limits of losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, BudgetError, BuildError, Tree
from branchnet.deploy import Quantized, load_onnx
from branchnet.deploy.quantization import model_bench
from branchnet.inference.latency import Latency

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TASKS = ("a", "b", "c")
PROBE = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A head with two tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(48, 2), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"one": self.one(x), "other": (self.other(x), 7)}


def network(head: nn.Module) -> nn.Module:
    first = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, second, head).eval()


@pytest.fixture(scope="module")
def branched() -> BranchedNetwork:
    torch.manual_seed(1)
    networks = {"a": network(nn.Linear(48, 5)), "b": network(Pair()), "c": network(nn.Linear(48, 4))}
    tree = Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]])
    return branchnet.build(tree, networks, example=PROBE[:2], locations=["0", "1"], init="donor").eval()


@pytest.fixture(scope="module", autouse=True)
def one_export(branched: BranchedNetwork) -> Iterator[None]:
    """Calls on the network of this module, with the probe and kinds that most have, export it once."""
    make = model_bench.ModelBench.of
    kept: list[model_bench.ModelBench] = []

    def of(network: Any, calibration: Any, judged: Any, kinds: Any, dynamic: Any) -> model_bench.ModelBench:
        if network is not branched or kinds:
            return make(network, calibration, judged, kinds, dynamic)
        if not kept:
            kept.append(make(network, calibration, judged, kinds, dynamic))
        return kept[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_bench.ModelBench, "of", of)
        yield


@pytest.fixture(scope="module")
def smallest(branched: BranchedNetwork) -> Quantized:
    return branchnet.quantize(branched, PROBE, goal="bytes", max_loss=0.05)


@pytest.fixture(scope="module")
def int8(branched: BranchedNetwork) -> Quantized:
    """Every node in int8, as `every_node_saves` makes it fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("branchnet.deploy.quantization.model_bench.compare_latency", times_that_int8_halves)
        patch.setattr("branchnet.deploy.quantization.quantizing.compare_latency", times_that_int8_halves)
        return branchnet.quantize(branched, PROBE, max_loss=0.2)


def times_that_int8_halves(functions: Any, example: Any, *, repeats: int) -> dict[str, Latency]:
    return {name: Latency(((0.001 if name == "int8" else 0.002),) * repeats) for name in functions}


def times_that_int8_doubles(functions: Any, example: Any, *, repeats: int) -> dict[str, Latency]:
    return {name: Latency(((0.004 if name == "int8" else 0.002),) * repeats) for name in functions}


def unexplained(found: Tensor, own: Tensor) -> float:
    """The share of variance that is not explained, by numpy."""
    one, other = found.double().numpy(), own.double().numpy()
    return float(((one - other) ** 2).sum() / ((other - other.mean(0)) ** 2).sum())


def test_losses_are_the_share_of_unexplained_variance_on_the_other_half(
    branched: BranchedNetwork, int8: Quantized
) -> None:
    with torch.no_grad():
        own = branched(PROBE[1::2])
    found = int8(PROBE[1::2])
    for task in ("a", "c"):
        assert int8.losses[task] == pytest.approx(unexplained(found[task], own[task]), rel=0.02)
        assert 0 < int8.losses[task] < 0.2
    pair = [unexplained(found["b"]["one"], own["b"]["one"]), unexplained(found["b"]["other"][0], own["b"]["other"][0])]
    assert int8.losses["b"] == pytest.approx(np.mean(pair), rel=0.02)
    assert found["b"]["other"][1] == 7


def test_every_node_computes_in_int8_where_that_saves_time(int8: Quantized) -> None:
    assert set(int8.modes.values()) == {"int8"} and not int8.taken_back
    operators = [node.op_type for node in onnx.ModelProto.FromString(int8.content).graph.node]
    assert operators.count("QuantizeLinear") >= 4 and "BatchNormalization" not in operators
    assert int8.speedup == (2.0, 2.0, 2.0)


def test_nodes_go_back_where_the_whole_is_slower(branched: BranchedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchnet.deploy.quantization.model_bench.compare_latency", times_that_int8_halves)
    monkeypatch.setattr("branchnet.deploy.quantization.quantizing.compare_latency", times_that_int8_doubles)
    made = branchnet.quantize(branched, PROBE, max_loss=0.2)
    assert set(made.modes.values()) == {"weights"} and set(made.taken_back) == set(made.modes)
    assert "QuantizeLinear" not in [node.op_type for node in onnx.ModelProto.FromString(made.content).graph.node]
    assert "slower here" in str(made)


def test_a_node_alone_costs_no_other_task_anything(branched: BranchedNetwork) -> None:
    bench = model_bench.ModelBench.of(branched, [*PROBE[::2].split(16)], [*PROBE[1::2].split(16)], {}, True)
    for node in branched.members():
        for mode in ("weights", "int8"):
            losses = bench.measured({node.id: mode})  # type: ignore[dict-item]
            for task in TASKS:
                if task not in node.tasks:
                    assert losses[task] == 0, (node.id, mode, task)
                elif mode == "int8":
                    assert losses[task] > 0, (node.id, mode, task)


def test_the_smallest_file_is_a_third_and_as_good_as_promised(
    branched: BranchedNetwork, smallest: Quantized, tmp_path: Path
) -> None:
    smallest.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size == smallest.file_bytes
    branchnet.export(branched, PROBE[:2], tmp_path / "float.onnx")
    weights = sum(tensor.numel() * 4 for tensor in branched.parameters())
    assert weights < smallest.float_bytes < (tmp_path / "float.onnx").stat().st_size
    assert smallest.smaller == smallest.float_bytes / smallest.file_bytes > 2.5
    assert max(smallest.losses.values()) <= 0.05
    saved = sum(cost.saved_bytes for cost in smallest.costs if smallest.modes[cost.node] == cost.mode)
    assert abs(smallest.float_bytes - saved - smallest.file_bytes) < 500


@pytest.mark.parametrize("tasks", [None, ["c"], ["b", "a"]])
def test_a_saved_file_is_loaded_and_called_as_the_network_is(
    branched: BranchedNetwork, smallest: Quantized, tmp_path: Path, tasks: list[str] | None
) -> None:
    smallest.save(tmp_path / "small.onnx")
    loaded = load_onnx(tmp_path / "small.onnx")
    assert loaded.tasks == TASKS
    for batch in (PROBE[:1], PROBE[:7]):
        found, again = smallest(batch, tasks), loaded(batch, tasks=tasks)
        with torch.no_grad():
            own = branched(batch, tasks)
        assert list(found) == list(again) == list(own)
        for task in found:
            ours, theirs = (found[task], again[task]) if task != "b" else (found[task]["one"], again[task]["one"])
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(BuildError, match="'d'"):
        smallest(PROBE, ["d"])


def test_limits_by_task_are_kept_by_what_is_measured(smallest: Quantized) -> None:
    made = smallest.choose(goal="bytes", max_loss={"a": 0.0, "c": 0.1})
    assert made.losses["a"] == 0 and made.losses["c"] <= 0.1
    assert [made.modes[name] for name in ("nodes.0.0", "nodes.1.0", "heads.0")] == ["float"] * 3
    assert made.modes["nodes.1.1"] == "weights"


def test_nodes_are_taken_back_until_measured_losses_are_within_the_limits(
    branched: BranchedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node costs that are claimed to be a thousandth of what they are let the knapsack choose too much."""
    truth = model_bench.ModelBench.node_costs

    def too_low(self: Any) -> Any:
        for cost in truth(self):
            lower = {task: loss / 1000 for task, loss in cost.losses.items()}
            yield type(cost)(cost.node, cost.mode, cost.tasks, lower, cost.saved_bytes, 0.001 * (cost.mode == "int8"))

    monkeypatch.setattr(model_bench.ModelBench, "node_costs", too_low)
    monkeypatch.setattr("branchnet.deploy.quantization.quantizing.compare_latency", times_that_int8_halves)
    limit = 2e-4
    made = branchnet.quantize(branched, PROBE, max_loss=limit)
    assert made.taken_back and max(made.losses.values()) <= limit
    assert "(taken back)" in str(made)


def test_a_budget_of_bytes_is_kept_at_the_least_loss(smallest: Quantized) -> None:
    room = (smallest.float_bytes + smallest.file_bytes) // 2
    made = smallest.choose(max_bytes=room)
    assert smallest.file_bytes < made.file_bytes <= room and "float" in made.modes.values()
    assert sum(made.losses.values()) <= sum(smallest.losses.values())
    with pytest.raises(BudgetError, match="max_bytes=1,000") as caught:
        smallest.choose(max_bytes=1000)
    assert caught.value.smallest == pytest.approx(smallest.file_bytes, rel=0.05)


def test_classes_are_compared_by_divergence(branched: BranchedNetwork) -> None:
    made = branchnet.quantize(branched, PROBE, goal="bytes", max_loss=1e9, kinds={"c": "classification"})
    with torch.no_grad():
        own = branched(PROBE[1::2])["c"].double().log_softmax(1)
    found = made(PROBE[1::2])["c"].double().log_softmax(1)
    divergence = (own.exp() * (own - found)).sum()
    mean = own.exp().mean(0)
    constant = (own.exp() * (own - mean.log())).sum()
    assert made.losses["c"] == pytest.approx(float(divergence / constant), rel=0.05)


def test_the_report_is_plain_data_and_text(smallest: Quantized) -> None:
    stored = json.loads(json.dumps(smallest.to_dict()))
    assert stored["modes"] == dict(smallest.modes) and len(stored["costs"]) == 2 * len(smallest.modes)
    assert len(stored["milliseconds"]["float"]) == len(stored["milliseconds"]["quantised"]) >= 6
    text = str(smallest)
    assert all(f"{node}: {mode}" in text for node, mode in smallest.modes.items())
    assert f"{smallest.file_bytes:,}" in text and "times as fast" in text


def test_no_path_of_this_machine_is_in_the_file(smallest: Quantized) -> None:
    assert str(Path(branchnet.__file__).parent).encode() not in smallest.content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": "size"}, "goal='size'; expected one of latency, bytes"),
        ({"max_loss": -1.0}, r"max_loss=-1\.0"),
        ({"max_loss": {"d": 0.1}}, "'d'"),
        ({"kinds": {"a": "classes"}}, r"unknown kinds \['classes'\]"),
        ({"max_bytes": 0}, "max_bytes=0"),
    ],
)
def test_wrong_arguments_are_refused(branched: BranchedNetwork, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.quantize(branched, PROBE, **change)


def test_networks_that_cannot_be_quantised_are_refused(branched: BranchedNetwork) -> None:
    with pytest.raises(BuildError, match="the probe has 3 inputs"):
        branchnet.quantize(branched, PROBE[:3])
    try:
        with pytest.raises(BuildError, match="training mode"):
            branchnet.quantize(branched.train(), PROBE)
        with pytest.raises(BuildError, match=r"torch\.float64; expected"):
            branchnet.quantize(branched.eval().double(), PROBE)
    finally:
        branched.float().eval()
