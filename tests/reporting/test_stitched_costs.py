"""What stitches cost, and where tables, texts and pictures name them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

import branchnet
from branchnet.builder.stitch_costs import stitch_costs
from branchnet.cli.commands.show import show
from branchnet.clustering.trees.text_drawing import tree_text
from branchnet.inference import prepare
from branchnet.reporting.plots.tree_plot import draw_tree, tree_plot_data
from branchnet.stitching import AffineMap, Stitch
from tests.stitching.toys import KINDS, STITCHED, TREE, inputs, networks, stitched


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 2])
def test_parameters_and_multiply_adds_are_those_that_fvcore_counts(kind: str, rank: int | None) -> None:
    branched, x = stitched(kind), inputs(kind)
    for edge, stitch in branched.stitches.items():  # of lower rank, too
        shaped = {i: AffineMap(*each.channels, each.dimension, rank) for i, each in stitch.affine_maps.items()}
        child = branched.member(edge[1])
        child.module.stitch = Stitch(stitch.source, stitch.target, shaped)
    with torch.no_grad():
        trunk = branched.nodes[0][0](x)
        arriving = {STITCHED[0]: trunk, STITCHED[1]: branched.nodes[1][0](*trunk)}
    costs = stitch_costs(branched, x)
    assert [(cost.parent, cost.child) for cost in costs] == STITCHED
    for cost in costs:
        edge = (cost.parent, cost.child)
        counted = FlopCountAnalysis(branched.stitches[edge], arriving[edge]).unsupported_ops_warnings(False)
        assert cost.flops == counted.total()
        assert cost.params == sum(tensor.numel() for tensor in branched.stitches[edge].parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_reports_count_stitches_in_the_network_and_not_in_separate_ones(kind: str) -> None:
    branched, x = stitched(kind), inputs(kind)
    costs = branchnet.report(branched, x, latency=False).costs
    assert costs.params == sum(tensor.numel() for tensor in branched.parameters())
    own = [branchnet.report(branchnet.build(branchnet.Tree.separate([task], 2), {task: net}), x, latency=False).costs
           for task, net in networks(kind).items()]  # fmt: skip
    assert costs.separate_params == sum(each.params for each in own)
    assert costs.separate_flops == sum(each.flops for each in own)
    plain = branchnet.build(TREE, networks(kind), init="donor")
    without = branchnet.report(plain, x, latency=False).costs
    assert costs.flops - without.flops == sum(cost.flops for cost in costs.stitches)
    assert costs.params - without.params == sum(cost.params for cost in costs.stitches)


def test_texts_tables_and_pages_name_the_stitches(tmp_path: Path) -> None:
    branched, x = stitched("images"), inputs("images")
    report = branchnet.report(branched, x, latency=False)
    assert str(report).splitlines()[:5] == [
        "3 tasks, 2 stages, 3 nodes",
        "stage 0: a, b, c",
        "├── stage 1: a, b",
        "│   └── head of b (stitched to a's features)",
        "└── stage 1: c (stitched to a's features)",
    ]
    assert "of these 2 stitches:" in str(report)
    (table,) = [table for table in report.tables() if table.title.startswith("Stitching layers")]
    assert [row[:3] for row in table.rows] == [("nodes.1.1", "a", "c"), ("heads.1", "a", "b")]
    assert [stitch["child"] for stitch in report.to_dict()["stitches"]] == ["nodes.1.1", "heads.1"]
    report.save_html(tmp_path / "page.html")
    assert "Diamonds are stitching layers" in (tmp_path / "page.html").read_text()
    folded = branchnet.report(prepare(branched), x, latency=False)
    assert [row[3] for row in folded.tables()[3].rows] == ["folded", "folded"]


def test_a_drawn_tree_has_a_diamond_on_each_stitched_edge() -> None:
    plain, marked = tree_plot_data(TREE), tree_plot_data(TREE, stitched={(1, 1), (2, 1)})
    assert [(marked.nodes[link.child].tasks, link.stitched) for link in marked.links] == [
        (("a", "b"), False),
        (("c",), True),
    ]
    assert marked.stitched_heads == ("b",)
    diamonds = [
        [line for line in draw_tree(plot).axes[0].lines if line.get_marker() == "D" and line.get_zorder() == 3]
        for plot in (plain, marked)
    ]
    assert [len(found) for found in diamonds] == [0, 2]


def test_a_mark_inside_a_run_of_stages_begins_a_line() -> None:
    tree = branchnet.Tree(["a", "b"], [[["a", "b"]]] * 3)
    assert tree_text(tree) == str(tree) == "2 tasks, 3 stages, 3 nodes\nstages 0-2: a, b"
    assert tree_text(tree, {(1, 0): "here"}).splitlines()[1:] == ["stage 0: a, b", "└── stages 1-2: a, b (here)"]


def test_show_marks_the_stitches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    branched = stitched("vectors")
    branchnet.save(branched, tmp_path)
    show(tmp_path)
    shown = capsys.readouterr().out
    assert "stage 1: c (stitched to a's features)" in shown
    assert f"of these 2 stitches: {2 * (25 + 5)} parameters; their multiply-adds" in shown
