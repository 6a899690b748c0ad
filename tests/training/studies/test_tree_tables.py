import json

import numpy as np
import pytest
from scipy import stats

from branchnet import Tree, enumerate_trees
from branchnet.errors import DataError
from branchnet.training.studies.tree_tables import TreeTable, labels_text, score_predictions

TASKS = ("a", "b", "c")
TREES = tuple(enumerate_trees(TASKS, 2))


def table(values):
    return TreeTable(
        TASKS, TREES, tuple(range(values.shape[1])), values, {"a": False, "b": True, "c": False}, (3.0, 5.0),
        dict.fromkeys(TASKS, 1.0),
    )  # fmt: skip


@pytest.fixture
def trained():
    generator = np.random.default_rng(0)
    better = generator.normal(size=(len(TREES), 1, 3))
    return table(50 + better * [1, -1, 1] + 0.3 * generator.normal(size=(len(TREES), 3, 3)))


def test_a_table_is_read_as_it_was_written(tmp_path, trained):
    problem = {
        "tasks": {task: {"metric": "m", "lower_is_better": task == "b"} for task in TASKS},
        "stages": [3, 5],
        "heads": dict.fromkeys(TASKS, 1),
    }
    (tmp_path / "problems.json").write_text(json.dumps({"toy_set": problem}))
    lines = [
        ",".join([labels_text(tree), str(seed), *(repr(float(x)) for x in trained.values[k, seed])])
        for seed in range(3)
        for k, tree in enumerate(TREES)
    ]
    (tmp_path / "toy_set_labels.csv").write_text("tree,seed,a,b,c\n" + "\n".join(lines) + "\n")
    found = TreeTable.read(tmp_path / "toy_set_labels.csv")
    assert found.trees == TREES
    np.testing.assert_array_equal(found.values, trained.values)
    np.testing.assert_array_equal(found.sizes, [3 * t.widths[0] + 5 * t.widths[1] + 3 for t in TREES])
    for damaged in ("tree,seed,a,b\n" + "\n".join(lines), "", "tree,seed,a,b,c\n0 0,x,1,2,3\n"):
        (tmp_path / "toy_set_labels.csv").write_text(damaged)
        with pytest.raises(DataError, match="cannot be read as a table of trees"):
            TreeTable.read(tmp_path / "toy_set_labels.csv")


def test_a_tree_is_written_stage_by_stage():
    tree = Tree(TASKS, [[("a", "c"), ("b",)], [("a",), ("c",), ("b",)]])
    assert labels_text(tree) == "010 012"


def test_performance_is_delta_to_the_separate_networks(trained):
    separate = trained.values[TREES.index(Tree.separate(TASKS, 2))].mean(0)
    one = trained.values[4, 1]
    wanted = 100 / 3 * sum(s * (x - y) / y for s, x, y in zip((1, -1, 1), one, separate, strict=True))
    assert trained.performance[4, 1] == pytest.approx(wanted)


def test_scores_are_those_of_scipy_and_brute_force(trained):
    costs = np.random.default_rng(3).normal(size=len(TREES))
    reached = trained.performance.mean(1)
    found = score_predictions(trained, costs)
    assert found.spearman[0] == pytest.approx(stats.spearmanr(-costs, reached).statistic)
    assert found.spearman[1] < found.spearman[0] < found.spearman[2]
    equal = [(i, j) for i in range(len(TREES)) for j in range(i) if TREES[i].widths == TREES[j].widths]
    assert found.pairs == np.mean([(costs[i] < costs[j]) == (reached[i] > reached[j]) for i, j in equal])
    lost = []
    for limit in sorted(set(trained.sizes)):
        fitting = [k for k in range(len(TREES)) if trained.sizes[k] <= limit]
        lost.append(max(reached[fitting]) - reached[min(fitting, key=lambda k: costs[k])])
    assert found.regret == pytest.approx(np.mean(lost))


def test_the_truth_scores_best_and_its_opposite_worst(trained):
    reached = trained.performance.mean(1)
    best, worst = score_predictions(trained, -reached), score_predictions(trained, reached)
    assert best.spearman == (1, 1, 1) or best.spearman == pytest.approx((1, 1, 1))
    assert (best.within[0], best.pairs, best.regret, best.percentile) == pytest.approx((1, 1, 0, 0))
    assert (worst.within[0], worst.pairs) == pytest.approx((-1, 0))
    assert best.random_regret > 0 and worst.regret > best.random_regret


def test_a_constant_prediction_says_nothing(trained):
    found = score_predictions(trained, np.zeros(len(TREES)))
    assert np.isnan(found.spearman[0]) and found.pairs == 0.5
    with pytest.raises(DataError, match="a finite number for each"):
        score_predictions(trained, np.full(len(TREES), np.nan))
    with pytest.raises(DataError, match="a finite number for each"):
        score_predictions(trained, [1.0, 2.0])


def test_the_noise_ceiling_is_the_reliability_of_the_mean_over_seeds():
    generator = np.random.default_rng(5)
    truth = generator.normal(size=(len(TREES), 1, 1)) * np.ones((1, 1, 3)) * [1, -1, 1]
    quiet = table(50 + truth + 0.0 * generator.normal(size=(len(TREES), 3, 3)))
    noisy = table(50 + 0 * truth + generator.normal(size=(len(TREES), 3, 3)))
    assert quiet.noise_ceiling == pytest.approx(1)
    assert abs(noisy.noise_ceiling) < 0.8
    assert np.isnan(table(quiet.values[:, :1]).noise_ceiling)


def test_a_tree_of_one_seed_is_compared_with_that_seed(trained):
    """Seeds that differ by a constant change nothing, whichever trees were trained under them."""
    moved = trained.values + 10 * np.arange(3)[:, None] * np.array([1, -1, 1])
    full = table(moved)
    gaps = moved.copy()
    lacking = [k for k in range(len(TREES)) if k % 3 and TREES[k] != Tree.separate(TASKS, 2)]
    gaps[lacking, 1:] = np.nan
    found = table(gaps)
    alone = full.performance[:, 0]
    others = [k for k in range(len(TREES)) if k not in lacking]
    shift = (full.reached - alone)[others].mean()
    np.testing.assert_allclose(found.reached[lacking], alone[lacking] + shift, atol=1e-9)
    np.testing.assert_allclose(found.reached[others], full.reached[others], atol=1e-9)


def test_seeds_of_a_table(trained):
    gaps = trained.values.copy()
    gaps[2, 1] = np.nan
    found = table(gaps).of_seeds([1, 2])
    assert found.seeds == (1, 2) and found.trees == tuple(tree for k, tree in enumerate(TREES) if k != 2)
    np.testing.assert_array_equal(found.values, np.delete(trained.values, 2, 0)[:, 1:])
    with pytest.raises(DataError, match=r"seeds \[7\] are not in the table"):
        trained.of_seeds([0, 7])


def test_the_ceiling_within_widths_does_not_count_what_widths_explain():
    generator = np.random.default_rng(6)
    nodes = np.array([sum(tree.widths) for tree in TREES])[:, None, None] * np.array([1, -1, 1])
    found = table(100 + 5 * nodes + generator.normal(size=(len(TREES), 4, 3)))
    assert found.noise_ceiling > 0.8 and found.noise_ceiling_within < 0.5
