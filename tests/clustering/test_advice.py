"""What affinities say of a tree beside others, against all trees of its size."""

import dataclasses

import numpy as np
import pytest

from branchnet import Affinity, Constraints, PairMeasurements, Tree, advise, clustering_cost, enumerate_trees, search
from branchnet.clustering import expected_losses
from branchnet.errors import AffinityError, TreeError

TASKS = ["a", "b", "c", "d"]


def families(noise: float = 0.0, seed: int = 0) -> Affinity:
    """Two families at every one of two locations, with bootstrap samples of that noise."""
    generator = np.random.default_rng(seed)
    truth = np.where(np.arange(4)[:, None] // 2 == np.arange(4) // 2, 0.9, 0.2)

    def drawn() -> np.ndarray:
        values = truth + noise * generator.normal(size=(2, 4, 4))
        values = (values + values.transpose(0, 2, 1)) / 2
        values[:, range(4), range(4)] = 1.0
        return values

    inputs = np.array([drawn() for _ in range(40)])  # what single inputs say; the affinity is their mean
    rows = generator.integers(0, 40, (60, 40))
    return Affinity(TASKS, ["first", "second"], inputs.mean(0), samples=inputs[rows].mean(1))


def test_the_differences_are_those_to_all_trees_of_its_widths() -> None:
    affinity = families(0.02)
    found = search(affinity, [1.0, 1.0], "50% params", objective="mean-pair")
    advice = advise(found, affinity)
    others = [tree for tree in enumerate_trees(TASKS, 2) if tree.widths == found.tree.widths and tree != found.tree]
    costs = [clustering_cost(tree, affinity, objective="mean-pair") for tree in others]
    assert len(others) < 100
    assert advice.gain == pytest.approx(np.mean(costs) - found.cost)
    assert advice.better_than == np.mean(np.array(costs) > found.cost) == 1.0
    shared = clustering_cost(Tree.shared(TASKS, 2), affinity, objective="mean-pair")
    assert advice.shared == pytest.approx(shared - found.cost)
    grouped = [
        clustering_cost(Tree.grouped(tree.partitions[0], 2), affinity, objective="mean-pair")
        for tree in enumerate_trees(TASKS, 1)
        if tree.widths == (2,)
    ]
    assert advice.groups == pytest.approx(min(grouped) - found.cost)


def test_with_constraints_the_others_are_those_that_they_allow() -> None:
    affinity = families(0.02)
    rules = Constraints(apart=[["a", "c"]])
    found = search(affinity, [1.0, 1.0], "50% params", objective="mean-pair", constraints=rules)
    advice = advise(found, affinity, constraints=rules)

    def allowed(tree: Tree) -> bool:
        return all(tree.cluster_of("a", stage) != tree.cluster_of("c", stage) for stage in range(tree.depth))

    everything = [tree for tree in enumerate_trees(TASKS, 2) if tree.widths == found.tree.widths]
    others = [tree for tree in everything if allowed(tree) and tree != found.tree]
    assert 0 < len(others) < len(everything) - 1
    costs = [clustering_cost(tree, affinity, objective="mean-pair") for tree in others]
    assert advice.gain == pytest.approx(np.mean(costs) - found.cost)
    assert "Sharing everything, which the constraints exclude," in str(advice)
    assert "exclude" not in str(advise(found, affinity))
    with pytest.raises(TreeError, match=r"is excluded by Constraints\(.*expected one that they allow"):
        advise(Tree.shared(TASKS, 2), affinity, constraints=rules)


def test_the_error_is_that_of_the_difference_over_replicates() -> None:
    affinity = families(0.3)
    tree = Tree.grouped([["a", "b"], ["c", "d"]], 2)
    advice = advise(tree, affinity, objective="mean-pair")
    others = [one for one in enumerate_trees(TASKS, 2) if one.widths == tree.widths and one != tree]
    gains = []
    for values in affinity.replicates(50):
        replicate = dataclasses.replace(affinity, values=values, samples=None)
        costs = [clustering_cost(one, replicate, objective="mean-pair") for one in others]
        gains.append(np.mean(costs) - clustering_cost(tree, replicate, objective="mean-pair"))
    assert advice.error == pytest.approx(np.std(gains, ddof=1))


def test_families_are_told_from_noise() -> None:
    tree = Tree.grouped([["a", "b"], ["c", "d"]], 2)
    sure = advise(tree, families(0.02))
    assert sure.distinct and "of them are worse" in sure.sentences[0]
    worse = advise(Tree.grouped([["a", "c"], ["b", "d"]], 2), families(0.02))
    assert worse.gain < 0 and "no better than random ones of its size" in worse.sentences[0]


def noise(seed: int, n: int = 5) -> Affinity:
    """All pairs are equally alike, but for the inputs that were drawn."""
    generator = np.random.default_rng(seed)
    inputs = 0.5 + 0.3 * generator.normal(size=(40, 2, n, n))
    inputs = (inputs + inputs.transpose(0, 1, 3, 2)) / 2
    inputs[:, :, range(n), range(n)] = 1.0
    rows = generator.integers(0, 40, (60, 40))
    return Affinity([f"t{k}" for k in range(n)], ["first", "second"], inputs.mean(0), samples=inputs[rows].mean(1))


def test_the_best_tree_of_noise_is_seldom_taken_for_better_than_others() -> None:
    """A tree that was searched for wins by its own score always, and must not be believed for that."""
    found = []
    for seed in range(30):
        affinity = noise(seed)
        advice = advise(search(affinity, [1.0, 1.0], "50% params", objective="mean-pair"), affinity)
        assert advice.gain > 0
        found.append(advice.distinct)
    assert sum(found) <= 6
    unsure = advise(search(noise(found.index(False)), [1.0, 1.0], "50% params"), noise(found.index(False)))
    assert "No tree of this size is likely to beat another here" in unsure.sentences[0]


def test_sizes_of_clusters_alone_make_no_tree_better() -> None:
    flat = Affinity(TASKS, ["first", "second"], np.full((2, 4, 4), 0.5) + 0.5 * np.eye(4))
    uneven = Tree.grouped([["a"], ["b", "c", "d"]], 2)
    advice = advise(uneven, flat, objective="mean-pair")
    assert advice.gain > 0 and advice.clear == pytest.approx(0) and not advice.distinct


def test_without_replicates_it_says_that_it_does_not_know_how_sure_it_is() -> None:
    affinity = dataclasses.replace(families(0.02), samples=None)
    advice = advise(Tree.grouped([["a", "b"], ["c", "d"]], 2), affinity)
    assert np.isnan(advice.error) and "not known" in advice.sentences[0]


def test_measured_pairs_are_judged_in_percent_and_may_prefer_sharing() -> None:
    gain = np.zeros((3, 4, 4))
    gain[1:] = 2.0 * (1 - np.eye(4))
    pairs = PairMeasurements(TASKS, gain, unit="percent")
    tree = Tree.grouped([["a", "b"], ["c", "d"]], 2)
    advice = advise(tree, pairs)
    losses = expected_losses(pairs)
    assert (
        advice.shared == pytest.approx(losses.tree_cost(Tree.shared(TASKS, 2)) - losses.tree_cost(tree))
        and advice.shared < 0
    )
    assert "as good" in advice.sentences[1] and "pairs that were trained" in advice.sentences[2]


def test_a_tree_without_others_of_its_size() -> None:
    advice = advise(Tree.shared(TASKS, 2), families())
    assert np.isnan(advice.better_than) and not advice.distinct
    assert advice.sentences[0] == "There is no other tree of this size."


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AffinityError, match="random_trees is 0"):
        advise(Tree.shared(TASKS, 2), families(), random_trees=0)
    with pytest.raises(TreeError):
        advise(Tree.shared(["x", "y"], 2), families())


def test_trees_are_drawn_where_constraints_keep_many_tasks_together() -> None:
    names = [f"t{number}" for number in range(10)]
    values = np.random.default_rng(0).uniform(0.1, 0.9, (1, 10, 10))
    affinity = Affinity(names, ["only"], (values + values.transpose(0, 2, 1)) / 2)
    tree = Tree(names, [[names[:4], [*names[4:9]], names[9:]]])
    rules = Constraints(together=[names[:4], names[4:7]])
    advice = advise(tree, affinity, objective="mean-pair", constraints=rules)
    singles = [tree for tree in enumerate_trees(["a", "b", *names[7:]], 1) if tree.widths == (3,)]
    whole = {"a": names[:4], "b": names[4:7]}
    allowed = [
        Tree(names, [[[task for one in cluster for task in whole.get(one, [one])] for cluster in one.partitions[0]]])
        for one in singles
    ]
    costs = [clustering_cost(one, affinity, objective="mean-pair") for one in allowed if one != tree]
    assert len(costs) == 24  # Stirling's S(5, 3) = 25
    assert advice.gain == pytest.approx(np.mean(costs) - clustering_cost(tree, affinity, objective="mean-pair"))
