"""What a page and the command say of trees that were tried, of every step of a run, and of tasks that it ruined."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

import branchnet
from branchnet import Tree
from branchnet.errors import BranchnetError
from branchnet.reporting import (
    ComparedNetwork,
    Comparison,
    MeasuredTree,
    Page,
    draw_measured,
    measured_plot_data,
    step_table,
)
from branchnet.reporting.conclusion import verdict

TASKS = ("b", "a")
SHARED, SPLIT = Tree.shared(TASKS, 2), Tree(TASKS, [[TASKS], [("a",), ("b",)]])


def tried(by: str, predicted: float | None, measured: float, tree: Tree = SHARED) -> MeasuredTree:
    return MeasuredTree(tree, by, 100.0, predicted, {"b": 0.0, "a": 2 * measured})


def test_a_measured_tree_survives_json_in_any_order_of_keys() -> None:
    one = MeasuredTree(SPLIT, "RSA (mean-pair)", 12.0, None, {"b": 0.25, "a": 0.5})
    again = MeasuredTree.from_dict(json.loads(json.dumps(one.to_dict(), sort_keys=True)))
    assert again == one and again.mean == 0.375
    assert (again.tree.tasks, list(again.losses)) == (one.tree.tasks, ["b", "a"])
    weighted = replace(one, weights={"a": 1.5, "b": 0.5})
    assert MeasuredTree.from_dict(weighted.to_dict()) == weighted and weighted.mean == (0.5 * 1.5 + 0.25 * 0.5) / 2


def test_the_share_of_pairs_in_one_order_follows_from_kendalls_tau() -> None:
    points = np.random.default_rng(0).uniform(0, 1, (12, 2))
    plot = measured_plot_data([tried("chance", *map(float, point)) for point in points])
    assert plot.agreement == pytest.approx((1 + kendalltau(*points.T).statistic) / 2)
    assert np.isnan(measured_plot_data([tried("chance", 0.1, 0.2)]).agreement)


TRIED = [
    tried("RSA (mean-pair)", 0.5, 0.4),
    tried("stitching losses (medoid)", 0.3, 0.2, SPLIT),
    tried("chance", 0.9, 1.3),
    tried("chance", 0.8, 0.7),
]


def test_every_tree_is_drawn_and_the_best_one_ringed() -> None:
    plot = measured_plot_data(TRIED)
    assert [name for name, _ in plot.series] == ["RSA (mean-pair)", "stitching losses (medoid)", "chance"]
    assert plot.series[2][1] == ((0.9, 1.3), (0.8, 0.7))
    assert (plot.chosen, plot.proposer) == ((0.3, 0.2), "stitching losses (medoid)")
    figure = draw_measured(plot)
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["chosen"] == [[0.3, 0.2]] and drawn["chance"] == [[0.9, 1.3], [0.8, 0.7]]
    assert axes.get_xlim() == axes.get_ylim()
    figure.savefig(io.BytesIO())
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_many_proposers_have_marks_of_their_own_and_far_trees_stand_at_the_edge() -> None:
    names = [f"proposer {number}" for number in range(12)]
    figure = draw_measured(measured_plot_data([tried(name, 0.3, 0.4) for name in names] + [tried(names[0], 40.0, 0.5)]))
    (axes,) = figure.axes
    drawn = {str(line.get_label()): line for line in axes.lines}
    assert len({(drawn[name].get_color(), drawn[name].get_marker()) for name in names}) == 12
    coincident = [drawn[name] for name in names]
    assert all(one.get_zorder() > other.get_zorder() for one, other in itertools.pairwise(coincident))
    assert all(one.get_markersize() <= other.get_markersize() for one, other in itertools.pairwise(coincident))
    assert drawn[names[0]].get_xydata().tolist() == [[0.3, 0.4], [2.0, 0.5]] and axes.get_xlim()[1] < 2.5
    assert axes.get_xticklabels()[-1].get_text() == "≥ 2"


def test_plot_draws_what_a_run_measured_and_refuses_a_mixture() -> None:
    for given in (TRIED, tuple(TRIED)):
        assert branchnet.plot(given).axes[0].get_ylabel().startswith("measured")
    with pytest.raises(BranchnetError, match="MeasuredTree, Tree cannot be drawn"):
        branchnet.plot([*TRIED, SHARED])
    with pytest.raises(BranchnetError, match="no tree has a predicted loss"):
        measured_plot_data([tried("RSA", None, 0.5)])


def test_the_page_says_who_proposed_the_winner_and_lists_every_tree() -> None:
    html = Page("t", measured=TRIED).to_html()
    assert 'id="tried"' in html and "The chosen one was proposed by stitching losses (medoid)." in html
    assert html.count("<tr>") == 1 + len(TRIED)
    assert 'id="tried"' not in Page("t").to_html()


def compared(*, distilled: float = 80.0, error: float = 2.0) -> Comparison:
    """Two tasks: of `a` more is better, of `b` less."""

    def network(name: str, a: float, b: float, *, reference: bool = False) -> ComparedNetwork:
        return ComparedNetwork(name, {"a": a, "b": b}, params=None if reference else 10, reference=reference)

    networks = (
        network("separate", 100, 1),
        network("branched", distilled, error),
        network("shared", 50, 4),
        network("before training", 70, 3, reference=True),
        network("without stitches", -300, 90, reference=True),
        network("constant", 0, 5, reference=True),
    )
    kappa = {network.name: 10.0 * number for number, network in enumerate(networks)}
    return Comparison(
        networks,
        {"a": "explained KL %", "b": "RMSE"},
        {"a": False, "b": True},
        {"a": {"agreement beyond chance %": kappa}},
    )


def test_the_steps_of_a_run_stand_in_order_with_further_metrics_below() -> None:
    table = step_table(compared())
    assert table is not None
    headings = [column.heading for column in table.columns[2:]]
    assert headings == ["own network", "constant", "without stitches", "before training", "after training"]
    assert table.rows == (
        ("a", "explained KL %", 100, 0, -300, 70, 80),
        ("", "agreement beyond chance %", 0, 50, 40, 30, 10),
        ("b", "RMSE", 1, 5, 90, 3, 2),
    )


def test_without_training_the_branched_network_is_called_stitched() -> None:
    whole = compared()
    networks = tuple(network for network in whole.networks if network.name != "before training")
    table = step_table(Comparison(networks, whole.metric_names, whole.lower_is_better))
    assert table is not None and table.columns[-1].heading == "stitched"
    assert step_table(Comparison(networks[:3], whole.metric_names, whole.lower_is_better)) is None


def test_references_are_no_networks_to_choose_from() -> None:
    comparison = compared()
    assert [row[0] for row in comparison.size_table().rows] == ["separate", "branched", "shared"]
    assert [column.heading for column in comparison.task_table().columns[2:]] == ["separate", "branched", "shared"]
    assert comparison.metric_plot().variants == ("branched", "shared")


@pytest.mark.parametrize(
    ("distilled", "error", "said"),
    [
        (80, 2, []),
        (68.5, 2, ["Worse than before training: a (68.5 against 70)."]),
        (80, 3.5, ["Worse than before training: b (3.5 against 3)."]),
        (70, 3, []),
        (70.000001, 3, []),
        (
            0,
            6,
            [
                "Worse than before training: a (0 against 70), b (6 against 3).",
                "No better than a constant answer: a (0 against 0), b (6 against 5).",
            ],
        ),
    ],
)
def test_the_verdict_names_every_task_that_was_ruined(distilled: float, error: float, said: list[str]) -> None:
    text = verdict(compared(distilled=distilled, error=error))
    assert all(sentence in text for sentence in said)
    assert ("Worse" in text, "constant" in text) == (bool(said), len(said) == 2)


def two_tasks(*networks: tuple[str, float, float], samples: dict[str, int] | None = None) -> Comparison:
    """Accuracies of `a` and errors of `b`, constant answers last."""
    made = [ComparedNetwork(name, {"a": a, "b": b}, params=10, reference=name == "constant") for name, a, b in networks]
    return Comparison(tuple(made), {"a": "accuracy %", "b": "RMSE"}, {"a": False, "b": True}, samples=samples or {})


def test_the_verdict_names_the_task_that_lost_most_and_a_gain_against_nothing() -> None:
    lost = two_tasks(("separate", 90, 1), ("branched", 89.99, 1.5), ("constant", 10, 5))
    assert "b lost most: RMSE 1.5 against 1 (\N{MINUS SIGN}0.5, \N{MINUS SIGN}50.0 %)." in verdict(lost)
    gained = two_tasks(("separate", 9, 1), ("branched", 50, 0.9), ("constant", 10, 5))
    text = verdict(gained)
    assert "lost most" not in text and "a change says nothing: a (9 against 10)." in text


def test_the_verdict_names_no_loss_that_nobody_would_see() -> None:
    rows = [("separate", 90.0, 1.0), ("branched", 80.0, 2.0), ("constant", 10.0, 5.0)]
    for before, named in ((80.7, False), (80.9, True)):
        start = ComparedNetwork("before training", {"a": before, "b": 2.0}, reference=True)
        comparison = two_tasks(*rows)
        whole = Comparison((*comparison.networks, start), comparison.metric_names, comparison.lower_is_better)
        assert ("Worse than before training: a" in verdict(whole)) is named


def test_few_samples_and_metrics_near_0_are_said_once_and_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    comparison = two_tasks(("separate", 0.01, 0), ("branched", 5, 1), ("constant", 0, 5), samples={"a": 400, "b": 8})
    text = verdict(comparison)
    assert "close to 0, and decides the mean: a." in text
    assert "is 0, so that there is no relative change: b." in text
    assert "Measured on fewer than 30 samples, so that small changes are chance: b (8)." in text
    table = comparison.task_table()
    assert [row[1] for row in table.rows] == [400, 8, None] and table.columns[1].heading == "samples"
    assert not recwarn.list
