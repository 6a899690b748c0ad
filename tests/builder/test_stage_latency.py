"""The measured cost table: its shape and values, what search makes of it, and what it predicts."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Affinity, Budget, LatencyTable, Tree
from branchnet.errors import BudgetError, BuildError
from branchnet.inference import Latency, compiler_problem, measure_latency, ratio_interval
from branchnet.inference.latency_tables import predicted_rounds, table_and_others
from tests.builder.toys import TwoInputs

TASKS = ("a", "b", "c")
SECONDS = {"fast": 0.002, "slow": 0.008, "head": 0.004}


class Waiting(nn.Module):
    """Takes as long as it is told, whatever the machine does."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return _wait(x * self.weight, self.seconds)


@torch.fx.wrap
def _wait(x: Tensor, seconds: float) -> Tensor:
    time.sleep(seconds)
    return x


def networks(tasks: tuple[str, ...] = TASKS) -> Mapping[str, branchnet.StagedNetwork]:
    made = {
        task: nn.Sequential(*(Waiting(seconds) for seconds in SECONDS.values()), nn.Linear(4, 1 + n)).eval()
        for n, task in enumerate(tasks)
    }
    return branchnet.split_all(made, torch.ones(2, 4), locations=["0", "1"])


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return branchnet.latency_table(networks(), torch.ones(2, 4), "cpu", compiled=False, repeats=5)


def test_stages_and_heads_take_the_time_that_they_were_made_to_take(table: LatencyTable) -> None:
    copies = np.arange(4)
    fast, slow = table.costs
    # A sleep never returns early; it is late by the scheduler's doing, which a busy machine makes worse.
    assert (np.array(fast) >= 2 * copies).all() and (np.array(slow) >= 8 * copies).all()
    assert fast[0] == slow[0] == 0 and fast[3] < slow[3]
    assert all(cost >= 4 for cost in table.head_costs.values())
    tree = Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]])
    assert table.predict(tree) == pytest.approx(fast[1] + slow[2] + sum(table.head_costs.values()))


def test_a_budget_in_milliseconds_limits_the_tree(table: LatencyTable) -> None:
    affinity = Affinity(TASKS, table.locations, np.full((2, 3, 3), 0.5) + 0.5 * np.eye(3))
    limit = table.predict(Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]]))
    result = branchnet.search(affinity, table.costs, Budget.parse(f"{limit} ms"), head_costs=table.head_costs)
    assert result.unit == "latency" and result.size <= limit * (1 + 1e-12)
    assert result.tree.widths[1] == 2
    with pytest.raises(BudgetError, match="smallest"):
        branchnet.search(affinity, table.costs, Budget.parse("1 ms"), head_costs=table.head_costs)


def test_it_comes_back_from_a_file(table: LatencyTable) -> None:
    assert LatencyTable.from_dict(table.to_dict()) == table
    assert "fast" not in str(table) and "head of c" in str(table) and "eager" in str(table)


def test_columns_stand_apart_and_end_together_however_wide_they_are() -> None:
    def of(*milliseconds: float) -> Latency:
        return Latency(tuple(1e-3 * value for value in milliseconds))

    name = "layer1.a.very.long.name.of.a.stage"
    wide = LatencyTable(
        ("a",), (name, "x"), (1, 10), ((of(1), of(1234567.5)), (of(98765, 98767), of(2))), ((None, of(3)), (None,) * 2),
        {"a": of(4)}, "by hand",
    )  # fmt: skip
    lines = str(wide).splitlines()[1:]
    assert [re.split(r" {2,}", line.strip()) for line in lines] == [
        ["stage", "1", "10"],
        [name, "1.00 (1.00-1.00)", "1234567.50 (1234567.50-1234567.50)"],
        ["fused", "-", "3.00 (3.00-3.00)"],
        ["x", "98766.00 (98765.20-98766.80)", "2.00 (2.00-2.00)"],
        ["head of a", "4.00 (4.00-4.00)"],
    ]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert len(lines[-1]) == lines[0].index(" 1 ") + 2 == lines[2].index(" - ") + 2 == lines[3].index(")") + 1


@pytest.mark.parametrize(("options", "said"), [({"compiled": False}, "warm up"), ({}, "compile and warm up")])
def test_the_progress_bar_says_what_is_done(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], said: str
) -> None:
    shown = []

    @contextmanager
    def bar(text: str, total: int, **_: object) -> Iterator[Callable[[], None]]:
        shown.append(text)
        yield lambda: None

    monkeypatch.setattr("branchnet.inference.measuring.stage_runs.progress_bar", bar)
    monkeypatch.setattr("branchnet.inference.latency_tables.compiler_problem", lambda device: "")
    monkeypatch.setattr("branchnet.inference.latency_tables.compiled_apart", lambda function, **_: function)
    branchnet.latency_table(networks(), torch.ones(2, 4), repeats=1, progress=True, **options)
    assert shown == [said]


def test_between_measured_widths_costs_lie_on_a_line_and_the_faster_way_counts() -> None:
    def flat(seconds: float) -> Latency:
        return Latency((seconds,) * 3)

    tasks = tuple("abcdefgh")
    table = LatencyTable(
        tasks, ("s",), (1, 4, 8), ((flat(1.0), flat(4.0), flat(8.0)),), ((None, flat(2.0), None),), {}, "by hand"
    )
    assert table.costs[0] == pytest.approx([0, 1000, 4000 / 3, 5000 / 3, 2000, 3500, 5000, 6500, 8000])


def test_fused_copies_are_measured_where_they_can_be() -> None:
    made = {t: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval() for t in TASKS}
    table = branchnet.latency_table(made, torch.ones(2, 4), locations=["0", "1"], compiled=False, fused=True, repeats=2)
    assert [latency is not None for latency in table.fused[0]] == [False, True, True]
    assert table.fused[1] == (None, None, None)  # a ReLU has no weights to stack


def test_many_tasks_are_measured_at_some_widths_only() -> None:
    tasks = tuple(f"t{n}" for n in range(13))
    made = {t: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval() for t in tasks}
    table = branchnet.latency_table(made, torch.ones(2, 4), locations=["0"], compiled=False, repeats=1)
    assert table.widths == (1, 2, 3, 4, 5, 6, 7, 8, 12, 13)
    assert len(table.costs[0]) == 14


def test_a_prediction_and_what_it_predicts_are_measured_in_the_same_rounds() -> None:
    """A machine that becomes five times slower in some rounds does not change their ratio."""
    made = networks()
    tree = Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]])
    network = branchnet.build(tree, made, init="donor").eval()
    table, others = table_and_others(made, torch.ones(2, 4), {"tree": network}, compiled=False, repeats=5)
    predicted = predicted_rounds(table, tree)
    for r, seconds in enumerate(predicted.samples):
        entries = [table.unfused[0][0], table.unfused[1][1], *table.heads.values()]
        assert seconds == pytest.approx(sum(entry.samples[r] for entry in entries))
    # fast once, slow twice, and a head of 4 ms three times: what both sides sleep at least
    assert min(*predicted.samples, *others["tree"].samples) >= 0.002 + 2 * 0.008 + 3 * 0.004
    load = (1, 5, 1, 5, 1)
    loaded = [
        Latency(tuple(s * f for s, f in zip(side.samples, load, strict=True))) for side in (predicted, others["tree"])
    ]
    assert ratio_interval(*loaded) == pytest.approx(ratio_interval(predicted, others["tree"]))
    with pytest.raises(BuildError, match=r"widths \[2\] of the tree were not measured; expected some of \[1, 3\]"):
        predicted_rounds(branchnet.latency_table(made, torch.ones(2, 4), compiled=False, widths=[1], repeats=1), tree)


def test_stitches_are_measured_and_counted() -> None:
    """Matrices of 362 x 362 at 4,096 positions next to stages that do nearly nothing."""
    made = {
        task: nn.Sequential(nn.Tanh(), nn.Linear(362, 362), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 362, n + 1)).eval()
        for n, task in enumerate(TASKS)
    }
    x = torch.randn(40, 8, 362)
    staged = branchnet.split_all(made, x, locations=["1", "2"])
    tree = Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few positions for so many channels
        stitched = branchnet.build(tree, staged, init="stitch", probe=x).eval()
        alone = branchnet.build(tree, staged, init="donor").eval()
    table, others = table_and_others(staged, x, {"stitched": stitched, "alone": alone}, compiled=False, repeats=9)
    (before, after), sizes = table.stitches, table.stitch_sizes
    assert sizes == (1e3 * before.median, 1e3 * after.median)
    assert table.predict(tree, stitched=True) == pytest.approx(table.predict(tree) + sum(sizes))
    predicted = predicted_rounds(table, tree, stitched=True)
    plain = predicted_rounds(table, tree)
    for with_them, without, *each in zip(predicted.samples, plain.samples, before.samples, after.samples, strict=True):
        assert with_them == pytest.approx(without + sum(each))
    rounds = zip(*(one.samples for one in (others["stitched"], others["alone"], before, after)), strict=True)
    added = np.median([(stitched - alone) / (first + second) for stitched, alone, first, second in rounds])
    assert 0.3 < added < 3  # the machine's doing
    affinity = Affinity(TASKS, table.locations, np.full((2, 3, 3), 0.5) + 0.5 * np.eye(3))
    budget = Budget.parse(f"{1.0001 * table.predict(tree, stitched=True)} ms")
    result = branchnet.search(
        affinity, table.costs, budget, head_costs=table.head_costs, stitch_sizes=table.stitch_sizes
    )
    assert result.size == pytest.approx(table.predict(result.tree, stitched=True))
    plainly = table.to_dict()
    del plainly["stitches"]  # as files of 0.1 are
    with pytest.raises(BuildError, match="holds no times of stitches; expected one that this version measured"):
        LatencyTable.from_dict(plainly).predict(tree, stitched=True)
    with pytest.raises(BuildError, match="do not fit each other"):
        LatencyTable.from_dict(table.to_dict() | {"stitches": [[1.0]]})


@pytest.mark.parametrize("widths", [[], [0, 1], [4]])
def test_impossible_widths_are_refused(widths: list[int]) -> None:
    with pytest.raises(BuildError, match="expected numbers from 1 to 3"):
        branchnet.latency_table(networks(), torch.ones(2, 4), widths=widths)


def test_networks_are_left_alone() -> None:
    made = networks()
    before = {k: v.clone() for network in made.values() for k, v in network.state_dict().items()}
    branchnet.latency_table(made, torch.ones(2, 4), compiled=False, repeats=1)
    after = {k: v for network in made.values() for k, v in network.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_one_compilation_serves_every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {t: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval() for t in TASKS}
    compiler_problem("cpu")  # compiles a probe of its own, once
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    branchnet.latency_table(made, torch.ones(2, 8), locations=["0", "1"], repeats=1)
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 + 2 + 1
    )  # stages, stitches, and one head of all tasks


def test_networks_of_several_inputs_are_measured_as_they_are_called() -> None:
    left, right = torch.rand(2, 3), torch.rand(2, 4)
    made = {task: TwoInputs().eval() for task in "ab"}
    for example in ((left, right), {"left": left, "right": right}):
        cut = branchnet.split_all(made, example, locations=["first", "mix"])
        branched = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor").eval()
        assert len(measure_latency(branched, example, repeats=2).samples) == 2
        assert len(measure_latency(made["a"], example, repeats=2).samples) == 2


def test_a_network_of_ones_own_is_called_as_it_wants_to_be() -> None:
    class Own(TwoInputs):
        tasks = ("left", "right")

    assert len(measure_latency(Own(), (torch.rand(2, 3), torch.rand(2, 4)), repeats=2).samples) == 2
