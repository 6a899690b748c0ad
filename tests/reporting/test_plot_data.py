"""What the pictures show, against values derived by hand."""

import math

import numpy as np
import pytest

from branchnet import BranchnetError
from branchnet.affinity.tensor import Affinity
from branchnet.clustering import SearchResult, Tree
from branchnet.inference.latency import Latency
from branchnet.reporting.plots.affinity_plot import affinity_plot_data
from branchnet.reporting.plots.front_plot import front_plot_data
from branchnet.reporting.plots.latency_plot import latency_plot_data
from branchnet.reporting.plots.metric_plot import draw_metrics, metric_plot_data
from branchnet.reporting.plots.samples_plot import TaskSamples, samples_plot_data
from branchnet.reporting.plots.tree_plot import leaf_order, tree_plot_data
from branchnet.training import relative_changes


def tree():
    return Tree([*"abcd"], [[tuple("abcd")], [("a", "c"), ("b", "d")], [("a",), ("c",), ("b", "d")]])


def result(tree, size, cost, proven=True):
    return SearchResult(tree, cost, size, cost, proven, "exact", "", "mean-max", "params", float("inf"))


def test_leaves_of_every_cluster_stand_together():
    assert leaf_order(tree()) == ("a", "c", "b", "d")


def test_tree_plot_by_hand():
    plot = tree_plot_data(tree(), locations=["x", "y", "z"], stage_params=[10, 50, 100])
    assert plot.widths == (1, 2, 3)
    assert [(n.stage, n.tasks, n.row) for n in plot.nodes] == [
        (0, ("a", "c", "b", "d"), 1.5),
        (1, ("a", "c"), 0.5),
        (1, ("b", "d"), 2.5),
        (2, ("a",), 0.0),
        (2, ("b", "d"), 2.5),
        (2, ("c",), 1.0),
    ]
    assert [(link.parent, link.child, link.chain) for link in plot.links] == [
        (0, 1, False),
        (0, 2, False),
        (1, 3, False),
        (2, 4, True),
        (1, 5, False),
    ]
    thick = {n.stage: n.thickness for n in plot.nodes}
    assert (thick[1] - thick[0]) / (thick[2] - thick[0]) == pytest.approx(40 / 90)


def test_thickest_nodes_of_neighbouring_rows_do_not_touch():
    plot = tree_plot_data(Tree.separate([*"abc"], 2), stage_params=[1, 7])
    assert max(node.thickness for node in plot.nodes) < 1


def test_affinity_plot_orders_outlines_and_scales():
    values = np.ones((3, 4, 4))
    values[0, 0, 3] = values[0, 3, 0] = 0.25
    plot = affinity_plot_data(Affinity([*"abcd"], [*"xyz"], values), tree=tree())
    assert plot.tasks == ("a", "c", "b", "d")
    assert plot.values[0, 0, 3] == 0.25
    assert np.isnan(plot.values[:, range(4), range(4)]).all()
    assert (plot.low, plot.high, plot.diverging) == (0.25, 1.0, False)
    assert plot.clusters == (((0, 3),), ((0, 1), (2, 3)), ((2, 3),))


def test_directed_affinity_has_a_scale_centred_on_zero_and_its_diagonal():
    values = np.array([[[0.3, -0.1], [0.2, 0.1]]])
    plot = affinity_plot_data(Affinity([*"ab"], [*"x"], values, measure="tag", directed=True))
    assert (plot.low, plot.high, plot.diverging) == (-0.3, 0.3, True)
    assert np.array_equal(plot.values, values)


def test_standard_errors_are_permuted_with_the_values():
    values = np.ones((3, 4, 4))
    errors = np.arange(48.0).reshape(3, 4, 4)
    plot = affinity_plot_data(Affinity([*"abcd"], [*"xyz"], values, standard_errors=errors), tree=tree())
    assert plot.standard_errors[1, 1, 2] == errors[1, 2, 1]


def test_front_plot_in_shares_of_the_separate_size():
    front = [
        result(Tree.separate([*"ab"], 2), 200, 0.0),
        result(Tree.shared([*"ab"], 2), 100, 1.0),
        result(Tree([*"ab"], [[("a", "b")], [("a",), ("b",)]]), 150, 0.25, proven=False),
    ]
    plot = front_plot_data(front, 200, chosen=front[2], random=[(170, 0.8)], budget=160)
    assert plot.front == ((0.5, 1.0), (0.75, 0.25), (1.0, 0.0))
    assert plot.proven == (True, False, True)
    assert (plot.chosen, plot.shared, plot.separate) == ((0.75, 0.25), (0.5, 1.0), (1.0, 0.0))
    assert plot.random == ((0.85, 0.8),)
    assert plot.budget == 0.8


def test_front_without_shared_or_separate_trees_marks_none():
    plot = front_plot_data([result(Tree([*"ab"], [[("a", "b")], [("a",), ("b",)]]), 150, 0.25)], 200)
    assert (plot.chosen, plot.shared, plot.separate, plot.budget) == (None, None, None, None)


def test_an_empty_front_is_refused():
    with pytest.raises(BranchnetError, match="front is empty"):
        front_plot_data([], 200)


def test_relative_changes_follow_the_direction_of_each_metric():
    changes = relative_changes({"a": 0.5, "b": 2.0}, {"a": 0.55, "b": 2.5}, {"a": False, "b": True})
    assert changes == pytest.approx({"a": 10.0, "b": -25.0})
    plot = metric_plot_data({"a": 0.5, "b": 2.0}, {"v": {"b": 2.5, "a": 0.55}}, {"a": False, "b": True})
    assert plot.deltas[0] == pytest.approx((10.0, -25.0))
    assert plot.points[0] == pytest.approx((0.05, -0.5))
    assert plot.means == pytest.approx((-7.5,))


def test_metrics_that_cannot_be_compared_are_refused():
    with pytest.raises(BranchnetError, match="'a'"):
        relative_changes({"a": 1.0}, {}, {"a": False})


def test_a_change_from_zero_is_drawn_as_none():
    lower = {"a": False, "b": True}
    plot = metric_plot_data({"a": 0.0, "b": 2.0}, {"v": {"a": 1.0, "b": 1.0}}, lower)
    assert math.isnan(plot.deltas[0][0]) and plot.means == (50.0,)
    draw_metrics(plot)


def test_latency_ratios_are_relative_to_the_baseline():
    plot = latency_plot_data({"old": Latency((0.04, 0.05, 0.06)), "new": Latency((0.02,) * 3)}, baseline="old")
    assert plot.medians == (0.05, 0.02)
    assert plot.ratios == pytest.approx((1.0, 2.5))
    assert plot.low[0] == pytest.approx(0.042)
    assert plot.high[0] == pytest.approx(0.058)


def test_samples_by_hand():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0] = 255
    classes = np.array([[[0, 1], [1, -1]], [[0, 0], [0, 0]]])
    depth = np.array([[[1.0, 3.0], [np.nan, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    up = np.zeros((2, 1, 1, 3))
    up[..., 2] = 1
    plot = samples_plot_data(
        images,
        [
            TaskSamples("s", "classes", classes, {"net": classes}),
            TaskSamples("d", "depth", None, {"net": depth}),
            TaskSamples("g", "grey", np.array([[[0.0, 4.0]]] * 2), {"net": np.array([[[1.0, 9.0]]] * 2)}),
            TaskSamples("n", "normals", up),
            TaskSamples("w", "label", np.array(["cat", "dog"]), {"net": np.array(["cat", "cow"])}),
        ],
    )
    rows = {(row.task, row.source): row for row in plot.rows}
    assert list(rows) == [
        ("", "image"),
        ("s", "truth"),
        ("s", "net"),
        ("d", "net"),
        ("g", "truth"),
        ("g", "net"),
        ("n", "truth"),
        ("w", "truth"),
        ("w", "net"),
    ]
    assert rows["", "image"].pictures[0].min() == 1.0
    segmented = rows["s", "truth"].pictures[0]
    assert np.array_equal(segmented[0, 1], segmented[1, 0])
    assert not np.array_equal(segmented[0, 0], segmented[0, 1])
    assert (segmented[1, 1] == 0.5).all()
    assert (rows["d", "net"].pictures[0, 1, 0] == 0.5).all()
    assert rows["g", "net"].pictures[0, 0, 0] == pytest.approx(0.25, abs=0.01)
    assert (rows["g", "net"].pictures[0, 0, 1] == 1.0).all()
    assert rows["n", "truth"].pictures[0, 0, 0] == pytest.approx([0.5, 0.5, 1.0])
    assert rows["w", "net"].texts == (("cat", True), ("cow", False))
    assert rows["w", "truth"].texts == (("cat", None), ("dog", None))


@pytest.mark.parametrize("bad", [np.zeros((2, 4)), np.zeros((3, 4, 4))])
def test_samples_of_the_wrong_shape_are_refused(bad):
    with pytest.raises(BranchnetError, match="'depth'"):
        samples_plot_data(np.zeros((2, 4, 4, 3)), [TaskSamples("t", "depth", bad)])


def test_cells_whose_interval_holds_the_mean_are_unclear():
    values = np.ones((1, 3, 3))
    for (i, j), value in {(0, 1): 0.9, (0, 2): 0.5, (1, 2): 0.1}.items():
        values[0, i, j] = values[0, j, i] = value
    assert affinity_plot_data(Affinity([*"abc"], ["x"], values)).unclear is None
    plot = affinity_plot_data(Affinity([*"abc"], ["x"], values, standard_errors=np.full((1, 3, 3), 0.1)))
    unclear = {frozenset((plot.tasks[i], plot.tasks[j])) for i, j in np.argwhere(plot.unclear[0])}
    assert unclear == {frozenset("ac")}
