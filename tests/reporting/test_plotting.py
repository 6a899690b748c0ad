"""`branchnet.plot` and the pictures that only it draws: what they show, and that every name can be read."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import branchnet
from branchnet.affinity import Affinity
from branchnet.clustering import Tree, compare_sharing
from branchnet.errors import BranchnetError
from branchnet.inference.latency import Latency
from branchnet.reporting import plot_depth
from branchnet.reporting.plots.affinity_plot import affinity_plot_data
from branchnet.reporting.plots.depth_plot import depth_lines
from branchnet.reporting.plots.history_plot import history_plot_data
from branchnet.training import History, Measurement
from tests.reporting.toys import EXAMPLE, toy_branched


def random_affinity(tasks: int, depth: int, *, directed: bool = False) -> Affinity:
    values = np.random.default_rng(0).uniform(0, 1, (depth, tasks, tasks))
    if not directed:
        values = (values + values.swapaxes(1, 2)) / 2
        values[:, range(tasks), range(tasks)] = 1
    names = [f"Attribute_{index:02d}" for index in range(tasks)]
    return Affinity(names, [f"layer{d}" for d in range(depth)], values, directed=directed)


def texts(figure: Figure) -> list[str]:
    figure.savefig(io.BytesIO())
    axes_texts = [
        text for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    legends = [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return [text.get_text() for text in (*axes_texts, *legends)]


def heat_maps(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def test_similar_tasks_are_next_to_each_other() -> None:
    """Two blocks of tasks in alternation: the order puts each block together, in every panel."""
    block = np.array([index % 2 for index in range(8)])
    values = np.where(block[:, None] == block[None, :], 0.9, 0.1)[None].repeat(2, axis=0)
    values[:, range(8), range(8)] = 1.0
    shown = affinity_plot_data(Affinity([f"t{index}" for index in range(8)], ["middle", "end"], values))
    parities = [int(task[1:]) % 2 for task in shown.tasks]
    assert parities in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert np.nanmin(shown.values[:, :4, :4]) == 0.9
    assert np.nanmax(shown.values[:, :4, 4:]) == 0.1


@pytest.mark.parametrize(("tasks", "depth", "directed"), [(1, 1, False), (2, 1, False), (5, 4, True), (40, 2, False)])
def test_pictures_of_an_affinity_name_every_task(tasks: int, depth: int, directed: bool) -> None:
    affinity = random_affinity(tasks, depth, directed=directed)
    figure = branchnet.plot(affinity)
    figure.savefig(io.BytesIO())
    panels = heat_maps(figure)[:depth]
    labels = panels[0].get_yticklabels()
    assert sorted(label.get_text() for label in labels) == sorted(affinity.tasks)
    assert min(label.get_fontsize() for label in labels) >= 7
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert [axes.get_title() for axes in panels] == list(affinity.locations)
    depth_figure = plot_depth(affinity)
    depth_figure.savefig(io.BytesIO())
    assert len(depth_figure.axes[0].lines) >= tasks * (tasks - 1) // 2


def test_depth_lines_are_the_pairs_from_the_highest_down() -> None:
    affinity = random_affinity(4, 3)
    lines = depth_lines(affinity)
    assert len(lines) == 6
    last = [line.values[-1] for line in lines]
    assert last == sorted(last, reverse=True)
    i, j = (affinity.tasks.index(task) for task in lines[0].tasks)
    np.testing.assert_array_equal(lines[0].values, affinity.values[:, i, j])


def test_a_tree_is_drawn_with_its_tasks_and_locations() -> None:
    tree = Tree(["depth", "edges"], [[("depth", "edges")], [("depth",), ("edges",)]])
    assert {"depth", "edges", "early", "late", "2 tasks"} <= set(
        texts(branchnet.plot(tree, locations=["early", "late"]))
    )


def test_a_front_is_drawn_in_shares_where_the_separate_tree_is_on_it() -> None:
    affinity = random_affinity(4, 2)
    front = branchnet.pareto_front(affinity, [1e6, 3e6], objective="mean-pair")
    axes = branchnet.plot(front, chosen=front[1]).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    np.testing.assert_allclose(line.get_xdata(), [result.size / 16e6 for result in front])
    assert axes.get_xlabel() == "parameters, share of the separate networks"
    axes = branchnet.plot(front[:2]).axes[0]  # without the separate tree, in their own unit
    (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    np.testing.assert_allclose(line.get_xdata(), [result.size for result in front[:2]])
    assert axes.get_xlabel() == "parameters"
    assert {"Attribute_00", "Attribute_03"} <= set(texts(branchnet.plot(front[0])))


def test_latencies_are_drawn_against_copies() -> None:
    table = branchnet.LatencyTable(
        ("a", "b"),
        ("stem", "body"),
        (1, 2),
        unfused=((Latency((0.001,)), Latency((0.002,))), (Latency((0.004,)), Latency((0.008,)))),
        fused=((None, Latency((0.0015,))), (None, None)),
        heads={"a": Latency((0.001,)), "b": Latency((0.001,))},
        setting="by hand",
    )
    axes = branchnet.plot(table).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in lines] == [
        (1, 2, 1.0, 2.0),
        (2, 1.5),
        (1, 2, 4.0, 8.0),
    ]


def test_a_report_is_drawn_as_its_tree_with_parameters() -> None:
    report = branchnet.report(toy_branched(), EXAMPLE, latency=False)
    shown = texts(branchnet.plot(report))
    assert any(text.startswith("first") and f"{report.costs.nodes[0].params}" in text for text in shown)


def test_history_shows_running_means_and_where_it_was_resumed() -> None:
    losses = tuple(float(step % 10 + 1) for step in range(100))
    shown = history_plot_data(History({"a": losses}, 1.0, resumed_at=40))
    assert (shown.window, shown.resumed_at, shown.logarithmic) == (4, 40, True)
    assert shown.smoothed[0][0] == 1.0
    assert shown.smoothed[0][2] == pytest.approx(2.0)
    assert shown.smoothed[0][50] == pytest.approx(np.mean(losses[47:51]))
    axes = branchnet.plot(History({"a": losses, "b": (0.0,)}, 1.0)).axes[0]
    assert axes.get_yscale() == "linear"
    with pytest.raises(BranchnetError, match="has no losses"):
        branchnet.plot(History({}, 0.0))


def test_steps_without_labels_and_held_out_losses_of_a_history_are_drawn() -> None:
    nan = float("nan")
    losses = {"a": (2.0,) * 50, "b": (nan, 4.0) * 25, "c": (nan,) * 50}
    measured = tuple(Measurement(step, {"a": 1.0, "b": 3.0, "c": nan}) for step in (0, 25, 50))
    history = History(losses, 1.0, measurements=measured)
    shown = history_plot_data(history)
    assert shown.logarithmic  # what is missing is not counted among losses of 0 or less
    assert shown.window == 2
    assert np.isnan(shown.smoothed[1][0])
    assert shown.smoothed[1][1:] == (4.0,) * 49
    assert np.isnan(shown.smoothed[2]).all()
    assert shown.held_out[:2] == (((0, 25, 50), (1.0,) * 3), ((0, 25, 50), (3.0,) * 3))
    figure = branchnet.plot(history)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [line.get_ydata()[-1] for line in dashed] == [1.0, 3.0]
    single = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.5]
    assert [len(line.get_xdata()) for line in single] == [50, 25, 0]  # lines go on over steps without a label
    assert "held-out samples" in texts(figure)
    assert figure.axes[0].get_yscale() == "log"


def test_fronts_of_groups_and_trees_are_drawn_together() -> None:
    compared = compare_sharing(random_affinity(4, 2), [1.0, 2.0])
    lines = branchnet.plot(compared).axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [len(compared.groups), len(compared.trees)]


@pytest.mark.parametrize(
    ("thing", "named"), [(3, "type int"), ("tree", "type str"), ([1, 2], "list of int"), ({}, "type dict")]
)
def test_other_things_are_refused(thing: object, named: str) -> None:
    with pytest.raises(BranchnetError, match=f"{named} cannot be drawn; expected an Affinity"):
        branchnet.plot(thing)
    with pytest.raises(BranchnetError, match="the front is empty"):
        branchnet.plot([])
