import csv
import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import branchnet
from branchnet import BranchnetError
from branchnet.errors import BuildError
from branchnet.inference.latency import Latency
from branchnet.reporting.comparison import ComparedNetwork, Comparison
from branchnet.reporting.summary import report
from tests.reporting.toys import EXAMPLE, TASKS, toy_branched, toy_networks
from tests.stages.checks import assert_untouched, everything


@pytest.fixture(scope="module")
def found():
    return report(toy_branched(), EXAMPLE, networks=toy_networks(), repeats=2)


def test_every_form_gives_the_same_totals(found):
    plain = json.loads(found.to_json())
    by_node = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert plain["params"] == sum(int(row["parameters"]) for row in by_node) == 631
    assert plain["flops"] == sum(int(row["FLOPs"]) for row in by_node)
    assert [node["id"] for node in plain["nodes"]] == [row["node"] for row in by_node]
    assert "| **total** |" in found.to_markdown() or "| total |" in found.to_markdown()
    assert plain == json.loads(json.dumps(found.to_dict()))


def test_the_terminal_shows_the_convention_and_the_totals(found):
    console = Console(file=io.StringIO(), width=100)
    console.print(found.table())
    shown = console.file.getvalue()
    assert "one multiply-add counts as one FLOP" in shown
    assert "58.3 %" in shown


def test_printing_a_report_shows_the_tree_and_its_size(found):
    tree, *lines = str(found).rsplit("\n", 3)
    assert tree == str(toy_branched().tree)
    separate = sum(p.numel() for network in toy_networks().values() for p in network.parameters())
    assert lines[0] == f"parameters: 631, {100 * 631 / separate:.1f} % of 3 separate networks"
    assert lines[1].startswith("multiply-adds: ") and lines[2].startswith("latency: ")
    assert lines[2].endswith("times as fast")
    assert "latency" not in str(report(toy_branched(), EXAMPLE, latency=False))


def test_every_node_and_both_networks_are_timed(found):
    assert set(found.latencies) == {"separate", "branched"}
    assert set(found.node_latencies) == {node.id for node in found.costs.nodes}
    assert all(latency.median > 0 for latency in found.node_latencies.values())


def test_without_latency_nothing_is_timed():
    found = report(toy_branched(), EXAMPLE, latency=False)
    assert found.latencies is None
    assert found.to_dict()["node_latency"] is None


def test_timing_leaves_the_users_networks_in_their_mode():
    networks = toy_networks()
    networks["b"].train()
    branched = toy_branched().train()
    report(branched, EXAMPLE, networks=networks, repeats=1)
    assert [networks[task].training for task in TASKS] == [False, True, False]
    assert branched.training


@pytest.mark.parametrize("suffix", ["csv", "json", "md", "html"])
def test_files_are_written_by_suffix(found, tmp_path, suffix):
    path = tmp_path / f"report.{suffix}"
    found.save(path)
    forms = {"csv": found.to_csv, "json": found.to_json, "md": found.to_markdown}
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") if suffix == "html" else text == forms[suffix]()


@pytest.mark.parametrize("name", ["report.xlsx", "report"])
def test_other_suffixes_are_refused(found, tmp_path, name):
    with pytest.raises(BranchnetError, match=r"\.csv, \.json, \.md or \.html"):
        found.save(tmp_path / name)


def test_comparison_by_hand():
    def network(name, a, b, params, seconds):
        return ComparedNetwork(name, {"a": a, "b": b}, params, None, {"eager": Latency((seconds,))})

    networks = (network("separate", 0.5, 2.0, 200, 0.04), network("branched", 0.45, 1.9, 120, 0.02))
    compared = Comparison(networks, {"a": "mIoU", "b": "RMSE"}, {"a": False, "b": True})
    assert compared.delta(networks[1]) == pytest.approx((-10 + 5) / 2)
    sizes = compared.size_table().to_records()
    assert sizes[1]["share"] == pytest.approx(0.6)
    assert sizes[1]["latency, eager (s)"] == 0.02
    assert sizes[0]["\N{GREEK CAPITAL LETTER DELTA} (%)"] is None
    rows = compared.task_table().rows
    assert rows[0][1:] == ("mIoU \N{UPWARDS ARROW}", 0.5, "0.45 (\N{MINUS SIGN}0.05, \N{MINUS SIGN}10.0 %)")
    assert rows[1][1:] == ("RMSE \N{DOWNWARDS ARROW}", 2.0, "1.9 (+0.1, +5.0 %)")
    assert compared.metric_plot().deltas[0] == pytest.approx((-10, 5))
    assert compared.latency_plot().ratios == pytest.approx((1, 2))


@pytest.mark.parametrize("change", ["one is missing", "one has another name"])
def test_networks_of_other_tasks_are_refused(change):
    networks = toy_networks()
    last = networks.pop("c")
    if change == "one has another name":
        networks["d"] = last
    with pytest.raises(BuildError, match="expected one network for each of 'a', 'b', 'c'"):
        report(toy_branched(), EXAMPLE, networks=networks)


class Counts(nn.Module):
    """Counts its calls, in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.last(torch.relu(self.second(torch.relu(self.first(x) + self.calls))))


def test_counting_and_timing_leave_what_networks_keep_alone():
    networks, x = {task: Counts() for task in TASKS}, torch.rand(2, 4)
    branched = branchnet.build(branchnet.Tree.shared(TASKS, 1), networks, example=x, locations=["second"], init="donor")
    before = [everything(network) for network in (branched, *networks.values())]
    report(branched, x, networks=networks, repeats=2)
    for known, network in zip(before, (branched, *networks.values()), strict=True):
        assert_untouched(known, everything(network))
