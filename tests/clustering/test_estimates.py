"""Expected performance, stability and the comparison of groups with trees."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from branchnet.affinity import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering import (
    Budget,
    Tree,
    clustering_cost,
    compare_sharing,
    compare_trees,
    entropy_weights,
    expected_losses,
    expected_performance,
    pareto_front,
    search,
    smooth_measurements,
    stability,
)
from branchnet.errors import AffinityError
from tests.clustering.toys import all_trees, facts_rows, random_affinity, rsa_like_affinity

TASKS = ["seg", "normal", "depth"]


def _values(table: str = "NYUv2_mobilenet_0227") -> np.ndarray:
    values = np.full((6, 3, 3), np.nan)
    for row in facts_rows("treemtl_two_task_tables.csv"):
        if row["table"] == table:
            a, b, task = int(row["task_a"]), int(row["task_b"]), int(row["task_measured"])
            values[int(row["branch_point"]), task, a + b - task] = float(row["rel_perf_percent"])
    return values


def _measurements() -> PairMeasurements:
    return PairMeasurements(TASKS, _values())


def _published() -> list[tuple[Tree, dict[str, str]]]:
    return [
        (Tree(TASKS, [[[TASKS[i] for i in c] for c in stage] for stage in json.loads(row["layout_json"])]), row)
        for row in facts_rows("treemtl_nyuv2_mobilenet_20_layouts.csv")
    ]


def test_published_estimates_are_reproduced() -> None:
    for tree, row in _published():
        estimate = expected_performance(_measurements(), tree)
        for task in TASKS:
            assert estimate[task] == pytest.approx(float(row[f"est_{task}"]), abs=1e-7)


def test_estimates_rank_trained_trees_better_than_counting_nodes() -> None:
    losses = expected_losses(_measurements())
    real = [np.mean([float(row[f"real_{task}"]) for task in TASKS]) for _, row in _published()]
    by_estimate = spearmanr([-losses.tree_cost(tree) for tree, _ in _published()], real)[0]
    by_nodes = spearmanr([-sum(tree.widths) for tree, _ in _published()], real)[0]
    assert by_estimate > by_nodes > 0.6


def test_smoothing_is_gaussian_process_regression() -> None:
    """Against scikit-learn's, with the same fixed kernel and no noise where nothing is shared."""
    values = _values()
    smooth = smooth_measurements(_measurements()).gain
    noise = np.array([1e-12, *[0.3] * 5])
    place = np.arange(6.0)[:, None]
    for i, j in [(0, 1), (1, 0), (2, 0)]:
        curve = values[:, i, j]
        process = GaussianProcessRegressor(RBF(5.0), alpha=noise, optimizer=None).fit(place, curve - curve.mean())
        np.testing.assert_allclose(smooth[:, i, j], curve.mean() + process.predict(place), atol=1e-9)
    assert (smooth[0] == 0).all()


def test_smoothed_estimates_rank_trained_trees_better() -> None:
    real = [np.mean([float(row[f"real_{task}"]) for task in TASKS]) for _, row in _published()]

    def rank(pairs: PairMeasurements) -> float:
        losses = expected_losses(pairs)
        return float(spearmanr([-losses.tree_cost(tree) for tree, _ in _published()], real)[0])

    assert rank(smooth_measurements(_measurements())) > 0.9 > 0.8 > rank(_measurements())


@pytest.mark.parametrize("weights", [None, "entropy", {"seg": 1.0, "normal": 2.0, "depth": 0.0}])
def test_search_maximises_expected_performance(weights: dict[str, float] | str | None) -> None:
    pairs = _measurements()
    shares = entropy_weights(pairs) if weights == "entropy" else weights or dict.fromkeys(TASKS, 1.0)
    total = sum(shares.values())  # type: ignore[union-attr]
    best = max(
        sum(shares[task] * e for task, e in expected_performance(pairs, tree).items()) / total  # type: ignore[index]
        for tree in (
            Tree(TASKS, [[[TASKS[int(t[1:])] for t in c] for c in p] for p in t.partitions]) for t in all_trees(3, 5)
        )
        if sum(tree.widths) <= 10
    )
    result = search(expected_losses(pairs, weights=weights), [1.0] * 5, Budget(10))
    assert -result.cost == pytest.approx(best, abs=1e-10)
    assert result.objective == "expected-performance"
    if weights is None:
        assert search(pairs, [1.0] * 5, Budget(10)) == result
        assert pareto_front(pairs, [1.0] * 5) == pareto_front(expected_losses(pairs), [1.0] * 5)


def test_refuses_measurements_that_are_missing() -> None:
    values = _values()
    values[2, 0, 1] = np.nan
    with pytest.raises(AffinityError, match="'seg' with 'normal' at branch point 2"):
        PairMeasurements(TASKS, values)
    values[4, 2, 1] = np.inf  # the first one is named
    with pytest.raises(AffinityError, match="'seg' with 'normal' at branch point 2 is nan"):
        PairMeasurements(TASKS, values)
    with pytest.raises(AffinityError, match="shape"):
        PairMeasurements(TASKS, values[:, :2])


@pytest.mark.parametrize("use", [expected_losses, smooth_measurements, entropy_weights])
def test_tables_without_named_axes_are_refused(use: Callable[[Any], Any]) -> None:
    with pytest.raises(AffinityError, match=r"ndarray, which does not say which axis is the task; expected PairMeasur"):
        use(_values())


def test_measured_affinities_are_no_similarities() -> None:
    symmetric = _measurements().affinity().symmetric()
    with pytest.raises(AffinityError, match="measured changes of tasks"):
        search(symmetric, [1.0] * 5, Budget(10))
    with pytest.raises(AffinityError, match=r"PairMeasurements\.read"):
        clustering_cost(Tree.shared(symmetric.tasks, 5), symmetric)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_sharing_that_helps_is_chosen_and_sharing_that_hurts_is_not(scale: float) -> None:
    """Tasks a and b gain from each other at every stage, c loses with both, in percent or in a hundredth of it."""
    gain = np.zeros((3, 3, 3))
    gain[:, 0, 1] = gain[:, 1, 0] = [0.0, 2.0, 3.0]
    gain[:, 2, :2] = gain[:, :2, 2] = np.array([0.0, -1.0, -4.0])[:, None]
    pairs = PairMeasurements(["a", "b", "c"], scale * gain, unit="percent")
    found = search(pairs, [1.0, 1.0], Budget(6))
    assert found.tree.partitions == ((("a", "b"), ("c",)),) * 2
    assert -found.cost == pytest.approx(scale * (3 + 3) / 2 / 3)


def test_the_direction_of_a_table_decides_which_task_counts() -> None:
    """Weighed by task a alone, b as a partner helps it; the transposed table says the opposite."""
    gain = np.zeros((2, 2, 2))
    gain[1, 0, 1], gain[1, 1, 0] = 5.0, -7.0
    only_a = {"a": 1.0, "b": 0.0}
    right, wrong = (PairMeasurements(["a", "b"], g) for g in (gain, gain.transpose(0, 2, 1)))
    assert search(expected_losses(right, weights=only_a), [1.0], Budget(2)).tree.widths == (1,)
    assert search(expected_losses(wrong, weights=only_a), [1.0], Budget(2)).tree.widths == (2,)
    records = [
        {"task_a": "a", "task_b": "b", "task_measured": "a", "branch_point": 1, "rel_perf_percent": 5.0},
        {"task_a": "b", "task_b": "a", "task_measured": "b", "branch_point": 1, "rel_perf_percent": -7.0},
    ]
    np.testing.assert_array_equal(PairMeasurements.read(records).gain, right.gain)


def test_weights_that_weigh_nothing_are_refused() -> None:
    for weights in (dict.fromkeys(TASKS, 0.0), {"seg": 1.0}, {"seg": 1.0, "normal": -0.5, "depth": 1.0}):
        with pytest.raises(AffinityError, match="expected finite numbers for every task, none negative, not all 0"):
            expected_losses(_measurements(), weights=weights)
    plain, scaled = (expected_losses(_measurements(), weights=dict.fromkeys(TASKS, w)) for w in (1.0, 1 / 3))
    np.testing.assert_allclose(plain.pairs, scaled.pairs, atol=1e-12)


def test_stability_is_certain_without_noise_and_falls_with_it() -> None:
    affinity, costs = rsa_like_affinity(6, 3, 0), [1.0, 2.0, 3.0]
    result = search(affinity, costs, "60% params")
    exact = stability(result, [affinity] * 3, costs)
    assert exact.same_tree == 1.0
    assert exact.distances == (0, 0, 0)
    assert {share for stage in exact.nodes for share in stage} == {1.0}
    noisy = Affinity(affinity.tasks, affinity.locations, affinity.values, standard_errors=np.full((3, 6, 6), 0.05))
    loose = stability(result, noisy, costs, samples=20)
    assert loose.same_tree < 1.0
    assert "of 20 replicates" in str(loose)
    assert np.allclose(np.diagonal(loose.together, axis1=1, axis2=2), 1.0)


def test_stability_counts_by_hand() -> None:
    tree = Tree(list("abc"), [[["a", "b"], ["c"]]])
    others = [tree, Tree.separate(list("abc"), 1), Tree.shared(list("cba"), 1)]
    counted = compare_trees(tree, others)
    assert counted.same_tree == pytest.approx(1 / 3)
    assert counted.nodes == ((pytest.approx(1 / 3), pytest.approx(2 / 3)),)
    assert counted.together[0, 0, 1] == pytest.approx(2 / 3)
    assert counted.distances == (0, 1, 2)


def test_stability_needs_replicates() -> None:
    affinity = random_affinity(3, 1, 0)
    result = search(affinity, [1.0], Budget(2))
    with pytest.raises(AffinityError, match="no standard errors"):
        stability(result, affinity, [1.0])
    with pytest.raises(AffinityError, match="replicates is empty"):
        stability(result, [], [1.0])


@pytest.mark.parametrize("name", ["mean-max", "sum-pair"])
def test_trees_are_never_worse_than_groups(name: str) -> None:
    affinity = rsa_like_affinity(6, 4, 2)
    compared = compare_sharing(affinity, [1.0, 2.0, 3.0, 4.0], objective=name)
    assert min(compared.saved()) >= -1e-12
    assert len(compared.trees) > len(compared.groups)
    assert all(len(set(point.tree.partitions)) == 1 for point in compared.groups)
