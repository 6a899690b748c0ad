"""Sharing that is not nested: the type, and searches against every sequence of partitions."""

from itertools import product

import numpy as np
import pytest

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Budget, Constraints, Sharing, Tree, search, stage_losses
from branchnet.errors import BranchnetError, BudgetError, TreeError
from tests.clustering.toys import all_trees, names, random_affinity, rsa_like_affinity

COSTS = [2.0, 1.0, 4.5]


def brute_force(affinity: Affinity, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths and cost of every sequence of partitions."""
    depth, n = affinity.values.shape[:2]
    losses = stage_losses(affinity, name)
    partitions = [[[int(t[1:]) for t in c] for c in tree.partitions[0]] for tree in all_trees(n, 1)]
    table = np.array([[losses.stage_cost(d, p) for p in partitions] for d in range(depth)])
    rows = np.array(list(product(range(len(partitions)), repeat=depth)))
    widths = np.array([len(p) for p in partitions])[rows]
    return widths, table[np.arange(depth), rows].sum(axis=1)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize(("n", "depth"), [(2, 3), (4, 3), (5, 2)])
def test_searches_against_all_sequences_of_partitions(name: str, n: int, depth: int) -> None:
    for seed in range(2):
        affinity = (rsa_like_affinity if seed % 2 else random_affinity)(n, depth, seed)
        costs = COSTS[:depth]
        widths, cost = brute_force(affinity, name)
        for share in (0.45, 0.7):
            limit = max(share * n, 1.0) * sum(costs)
            best = float(cost[widths @ costs <= limit * (1 + 1e-12)].min())
            found = search(affinity, costs, Budget(limit), objective=name, nested=False)
            assert found.sharing is not None
            assert found.proven
            assert found.cost == pytest.approx(best, abs=1e-12)
            assert found.size == pytest.approx(np.dot(found.sharing.widths, costs))
            assert found.size <= limit * (1 + 1e-12)
            assert found.cost <= search(affinity, costs, Budget(limit), objective=name).cost + 1e-12
            many = search(affinity, costs, Budget(limit), objective=name, nested=False, method="local")
            assert many.lower_bound <= best + 1e-9
            assert many.cost >= best - 1e-9
            assert many.size <= limit * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_two_budgets_against_all_sequences_of_partitions(seed: int) -> None:
    affinity = random_affinity(4, 3, seed)
    other = np.random.default_rng(seed).uniform(0.5, 5, 3).tolist()
    widths, cost = brute_force(affinity, "mean-pair")
    limits = 0.55 * 4 * sum(COSTS), 0.5 * 4 * sum(other)
    fitting = (widths @ COSTS <= limits[0] + 1e-9) & (widths @ other <= limits[1] + 1e-9)
    budget = [Budget(limits[0]), Budget(limits[1], "flops")]
    costs = {"params": COSTS, "flops": other}
    found = search(affinity, costs, budget, objective="mean-pair", nested=False)
    assert found.cost == pytest.approx(cost[fitting].min(), abs=1e-12)
    assert found.also[0].size == pytest.approx(np.dot(found.sharing.widths, other))


def test_latencies_that_fall_with_more_copies() -> None:
    affinity = random_affinity(4, 2, 0)
    table = [[0, 3.0, 1.0, 5.0, 4.0], [0, 1.0, 2.0, 1.5, 9.0]]
    widths, cost = brute_force(affinity, "mean-pair")
    sizes = np.array(table)[np.arange(2), widths].sum(axis=1)
    for limit in (2.0, 2.5, 5.5, 7.0):
        found = search(affinity, table, Budget(limit, "latency"), objective="mean-pair", nested=False)
        assert found.cost == pytest.approx(cost[sizes <= limit].min(), abs=1e-12)
    with pytest.raises(BudgetError, match="smallest feasible one is 2 ms"):
        search(affinity, table, "1.9 ms", nested=False)


def test_constraints_hold() -> None:
    affinity = random_affinity(5, 3, 1)
    rules = Constraints(apart=[["t0", "t1"]], shared_stages=1, max_clusters=3)
    found = search(affinity, COSTS, Budget(30.0), constraints=rules, nested=False).sharing
    assert found.widths[0] == 1
    assert max(found.widths) <= 3
    assert all(found.cluster_of("t0", d) != found.cluster_of("t1", d) for d in (1, 2))


def test_many_tasks_are_bounded() -> None:
    affinity = rsa_like_affinity(24, 3, 0)
    found = search(affinity, COSTS, "40% params", nested=False)
    assert found.method == "local"
    assert found.lower_bound <= found.cost <= search(affinity, COSTS, "40% params").cost + 1e-9
    assert found.gap < 0.15
    assert found.size <= found.limit * (1 + 1e-12)


def test_what_sharing_cannot_do_is_refused() -> None:
    affinity = random_affinity(3, 2, 0)
    with pytest.raises(BranchnetError, match="objective='stitch'"):
        search(affinity, [1.0, 1.0], "60% params", objective="stitch", nested=False)
    with pytest.raises(BranchnetError, match="method='beam'"):
        search(affinity, [1.0, 1.0], "60% params", method="beam", nested=False)
    with pytest.raises(TreeError, match="leave the trunk early"):
        search(affinity, [1.0, 1.0], "90% params", constraints=Constraints(depths={"t0": 1}), nested=False)
    with pytest.raises(BudgetError, match="smallest feasible one is 2 "):
        search(affinity, [1.0, 1.0], Budget(1.9), nested=False)


def test_sharings_are_canonical_and_checked() -> None:
    sharing = Sharing("abc", [[["c"], ["b", "a"]], [["b"], ["c", "a"]]])
    assert sharing.partitions == ((("a", "b"), ("c",)), (("a", "c"), ("b",)))
    assert sharing == Sharing.from_labels("abc", [[5, 5, 1], [0, 1, 0]])
    assert hash(sharing) == hash(Sharing.from_labels("abc", [[0, 0, 1], [0, 1, 0]]))
    tree = Tree.shared(names(3), 2)
    assert Sharing.from_tree(tree).partitions == tree.partitions
    with pytest.raises(TreeError, match="in one group"):
        Sharing("abc", [[["a"], ["b"]]])
    with pytest.raises(TreeError, match="in one group"):
        Sharing("abc", [[["a", "b"], ["b", "c"]]])
    with pytest.raises(TreeError, match="distinct"):
        Sharing("aa", [[["a"]]])
    with pytest.raises(TreeError, match="unknown task"):
        sharing.cluster_of("d", 0)
