"""Objectives against published numbers, against slow definitions, and their properties."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Budget, Tree, clustering_cost, search
from branchnet.errors import AffinityError, TreeError
from tests.clustering.toys import (
    affinities,
    all_trees,
    as_affinity,
    brute_sizes,
    facts_json,
    random_affinity,
    rsa_like_affinity,
    slow_stage_cost,
)

PUBLISHED = facts_json("treemtl_bmtn_rsa_head.json")
TENSOR = Affinity(PUBLISHED["tasks"], [f"block{d}" for d in range(5)], np.array(PUBLISHED["affinity_DTT"]))
READING = "mean_incl_singletons(TreeMTL,Antler)"


@pytest.mark.parametrize("nodes", [7, 9, 11, 13, 15, 17, 19, 21])
def test_published_costs_and_optima(nodes: int) -> None:
    best = facts_json("cost_reading_sensitivity.json")["by_budget_nodes"][str(nodes)][READING]
    tree = Tree(TENSOR.tasks, [[[TENSOR.tasks[i] for i in c] for c in stage] for stage in best["layout"]])
    assert clustering_cost(tree, TENSOR) == pytest.approx(best["cost"], abs=1e-12)
    result = search(TENSOR, [1.0] * 5, Budget(nodes), objective="mean-max", shared_stages=1)
    assert result.proven
    assert result.cost == pytest.approx(best["cost"], abs=1e-12)
    assert result.tree == tree


@pytest.mark.parametrize("nodes", [7, 11, 15, 21])
def test_size_weighted_reading_by_enumeration(nodes: int) -> None:
    """`diameter` weighted by block size is no objective here; mean-pair's value is checked against its definition."""
    result = search(TENSOR, [1.0] * 5, Budget(nodes), objective="mean-pair")
    loss = 1 - np.array(PUBLISHED["affinity_DTT"])
    index = {task: i for i, task in enumerate(TENSOR.tasks)}
    total = 0.0
    for stage, clusters in enumerate(result.tree.partitions):
        for cluster in clusters:
            pairs = [loss[stage, index[a], index[b]] for a, b in combinations(cluster, 2)]
            total += len(cluster) / 5 * (sum(pairs) / len(pairs) if pairs else 0.0)
    assert result.cost == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(affinities(max_tasks=4), st.integers(0, 10_000))
def test_costs_follow_their_definitions(name: str, affinity: Affinity, pick: int) -> None:
    depth, n = affinity.values.shape[:2]
    tree = all_trees(n, depth)[pick % len(all_trees(n, depth))]
    upper = np.triu_indices(n, 1)
    mean = affinity.values[:, upper[0], upper[1]].mean()
    expected = 0.0
    for stage, clusters in enumerate(tree.partitions):
        partition = [[affinity.tasks.index(task) for task in c] for c in clusters]
        expected += slow_stage_cost(name, 1 - affinity.values[stage], mean - affinity.values[stage], partition)
    assert clustering_cost(tree, affinity, objective=name) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(affinities(), st.randoms(use_true_random=False))
def test_cost_is_unchanged_by_permuting_tasks(name: str, affinity: Affinity, generator: object) -> None:
    depth, n = affinity.values.shape[:2]
    order = generator.sample(range(n), n)  # type: ignore[attr-defined]
    permuted = Affinity([affinity.tasks[i] for i in order], affinity.locations, affinity.values[:, order][:, :, order])
    tree = all_trees(n, depth)[generator.randrange(len(all_trees(n, depth)))]  # type: ignore[attr-defined]
    cost = clustering_cost(tree, affinity, objective=name)
    assert clustering_cost(tree, permuted, objective=name) == pytest.approx(cost, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"gain"}))
def test_separate_networks_lose_nothing(name: str) -> None:
    affinity = random_affinity(5, 3, 0)
    assert clustering_cost(Tree.separate(affinity.tasks, 3), affinity, objective=name) == 0.0


def test_gain_rewards_sharing_good_pairs_without_a_budget() -> None:
    values = np.array([[[1, 0.9, 0.1, 0.1], [0.9, 1, 0.1, 0.1], [0.1, 0.1, 1, 0.9], [0.1, 0.1, 0.9, 1]]])
    result = search(as_affinity(values), [1.0], Budget(4), objective="gain")
    assert result.tree.partitions[0] == (("t0", "t1"), ("t2", "t3"))
    assert result.cost < 0


def test_stage_weights_multiply_stages() -> None:
    affinity = random_affinity(4, 2, 1)
    tree = Tree.shared(affinity.tasks, 2)
    first, second = (1 - affinity.values[d].min() for d in range(2))
    assert clustering_cost(tree, affinity, stage_weights=[2.0, 0.5]) == pytest.approx(2 * first + second / 2)
    with pytest.raises(AffinityError, match="2 finite numbers"):
        clustering_cost(tree, affinity, stage_weights=[1.0, math.nan])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stage_of_weight_zero_does_not_count(name: str) -> None:
    """The same cost and the same best tree as with equal affinities at the other stages only."""
    affinity = rsa_like_affinity(5, 3, 2)
    first, second = np.triu_indices(5, 1)
    centred, loss = affinity.values[:, first, second].mean() - affinity.values, 1 - affinity.values
    weights = [0.0, 1.0, 0.0]
    costs = []
    for tree in all_trees(5, 3):
        partition = [[int(task[1:]) for task in cluster] for cluster in tree.partitions[1]]
        costs.append(slow_stage_cost(name, loss[1], centred[1], partition))
        if len(costs) % 100 == 1:
            found = clustering_cost(tree, affinity, objective=name, stage_weights=weights)
            assert found == pytest.approx(costs[-1], abs=1e-12)
    fitting = brute_sizes(5, [1.0, 2.0, 3.0]) <= 18.0
    result = search(affinity, [1.0, 2.0, 3.0], Budget(18.0), objective=name, stage_weights=weights)
    assert result.cost == pytest.approx(np.array(costs)[fitting].min(), abs=1e-12)
    assert clustering_cost(result.tree, affinity, objective=name, stage_weights=[0.0] * 3) == 0.0


def test_negative_weights_are_refused() -> None:
    affinity = random_affinity(3, 2, 0)
    for weights in ([1.0, -1e-9], [1.0], [1.0, math.inf]):
        with pytest.raises(AffinityError, match="2 finite numbers, none negative"):
            clustering_cost(Tree.shared(affinity.tasks, 2), affinity, stage_weights=weights)


def test_refuses_directed_affinities_and_other_trees() -> None:
    values = np.ones((1, 2, 2))
    values[0, 0, 1] = 0.5
    with pytest.raises(AffinityError, match="differ by direction"):
        clustering_cost(Tree.shared(["t0", "t1"], 1), as_affinity(values))
    affinity = random_affinity(3, 2, 0)
    with pytest.raises(TreeError, match="these differ: x"):
        clustering_cost(Tree.shared(["t0", "t1", "t2", "x"], 2), affinity)
    with pytest.raises(TreeError, match="3 stages"):
        clustering_cost(Tree.shared(affinity.tasks, 3), affinity)
    with pytest.raises(AffinityError, match="unknown objective"):
        clustering_cost(Tree.shared(affinity.tasks, 2), affinity, objective="best")


def changes(seed: int, n: int = 4, depth: int = 2) -> Affinity:
    values = np.random.default_rng(seed).normal(size=(depth, n, n))
    tasks = [f"t{k}" for k in range(n)]
    return Affinity(tasks, ["a", "b"][:depth], values, "look-ahead Z: effect of i's step on j's loss", directed=True)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", ["100% params", "70% params", "45% params"])
def test_transfer_finds_the_tree_whose_groups_help_their_tasks_most(seed: int, budget: str) -> None:
    """TAG's estimate of a group (Fifty et al. 2021, section 3), at every stage, against all trees."""
    affinity = changes(seed)

    def helped(tree: Tree) -> float:
        total = 0.0
        for stage, clusters in enumerate(tree.partitions):
            for cluster in clusters:
                for task in cluster:
                    j = affinity.tasks.index(task)
                    others = [affinity.values[stage, affinity.tasks.index(one), j] for one in cluster if one != task]
                    total += sum(others) / max(len(others), 1)
        return total / 4

    found = search(affinity, [1.0, 2.0], budget, objective="transfer")
    limit = float(budget.split("%")[0]) / 100 * 12
    fitting = [tree for tree in all_trees(4, 2) if tree.widths[0] + 2 * tree.widths[1] <= limit + 1e-9]
    assert found.proven
    assert -found.cost == pytest.approx(max(map(helped, fitting)))
    assert clustering_cost(found.tree, affinity, objective="transfer") == pytest.approx(-helped(found.tree))


def test_transfer_shares_what_helps_without_a_budget_and_nothing_else() -> None:
    values = np.zeros((1, 4, 4))
    values[0, :2, :2] = 0.1
    values[0, 2, 3] = values[0, 3, 2] = values[0, 0, 2] = -0.1
    affinity = Affinity([f"t{k}" for k in range(4)], ["a"], values, "first-order Z", directed=True)
    found = search(affinity, [1.0], "100% params", objective="transfer")
    assert found.tree.partitions[0] == (("t0", "t1"), ("t2",), ("t3",))


def test_transfer_refuses_affinities_that_are_no_changes_of_a_loss() -> None:
    with pytest.raises(AffinityError, match="in units of loss"):
        clustering_cost(Tree.shared(["t0", "t1"], 1), random_affinity(2, 1, 0), objective="transfer")
