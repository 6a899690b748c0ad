"""Budgets for subsets of the tasks beyond the exact method: against all trees, against it, and for many tasks."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.clustering import Budget, Constraints, Tree, pareto_front, random_tree, search, tree_size
from branchnet.clustering.exact.subset_search import task_limits
from branchnet.clustering.heuristics.local_search import apply_move, price_moves
from branchnet.clustering.heuristics.subset_landscape import subset_landscape, subset_starts
from branchnet.clustering.trees.sampling import tree_sampler
from branchnet.errors import BudgetError
from tests.clustering.toys import all_trees, brute_costs, names, random_affinity, rsa_like_affinity

COSTS = [2.0, 1.0, 4.5]


def nodes_for(tree: Tree, tasks: tuple[str, ...], costs: list[float]) -> float:
    """The cost of every node that serves one of the tasks."""
    return sum(cost for cost, stage in zip(costs, tree.partitions, strict=True) for c in stage if set(c) & set(tasks))


def texts(n: int, generator: np.random.Generator) -> list[tuple[tuple[str, ...], float]]:
    """Some subsets with limits, from what sharing all needs to somewhat more."""
    found: dict[tuple[str, ...], float] = {}
    for _ in range(int(generator.integers(1, 4))):
        size = int(generator.integers(1, n + 1))
        subset = tuple(np.array(names(n))[np.sort(generator.permutation(n)[:size])].tolist())
        found[subset] = float(sum(COSTS) * (0.99 + generator.uniform(0, 0.7) * size))
    return list(found.items())


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("name", ["mean-pair", "mean-max", "medoid", "gain"])
def test_local_search_and_bound_against_all_trees(n: int, name: str) -> None:
    trees, gaps = all_trees(n, 3), []
    for seed in range(3):
        affinity = (rsa_like_affinity if seed % 2 else random_affinity)(n, 3, seed)
        cost = brute_costs(affinity, name)
        limits = texts(n, np.random.default_rng(seed))
        budgets = [Budget(limit, tasks=subset) for subset, limit in limits]
        fitting = np.all([[nodes_for(t, s, COSTS) <= most for t in trees] for s, most in limits], axis=0)
        if not fitting.any():
            with pytest.raises(BudgetError, match="no tree fits"):
                search(affinity, COSTS, budgets, objective=name, method="local")
            continue
        best = cost[fitting].min()
        found = search(affinity, COSTS, budgets, objective=name, method="local")
        assert all(nodes_for(found.tree, subset, COSTS) <= limit for subset, limit in limits)
        assert found.lower_bound <= best + 1e-9
        assert best - 1e-9 <= found.cost
        assert not found.proven or found.cost == pytest.approx(best, abs=1e-8)
        gaps.append(found.cost - best)
        exact = search(affinity, COSTS, budgets, objective=name, method="exact")
        assert exact.proven
        assert exact.cost == pytest.approx(best, abs=1e-9)
    assert np.mean(gaps) <= 0.02 * abs(cost).max()


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6), st.sampled_from(["mean-pair", "mean-max", "medoid", "gain"]), st.sampled_from([6, 7]))
def test_local_search_is_no_better_and_its_bound_no_higher_than_the_exact_method(seed: int, name: str, n: int) -> None:
    affinity = rsa_like_affinity(n, 3, seed)
    budgets = [Budget(limit, tasks=subset) for subset, limit in texts(n, np.random.default_rng(seed))]
    try:
        exact = search(affinity, COSTS, budgets, objective=name, method="exact")
    except BudgetError:
        with pytest.raises(BudgetError):
            search(affinity, COSTS, budgets, objective=name, method="local")
        return
    found = search(affinity, COSTS, budgets, objective=name, method="local")
    assert found.lower_bound <= exact.cost + 1e-9
    assert exact.cost <= found.cost + 1e-9
    assert all(one.size <= one.limit * (1 + 1e-12) for one in found.resources)
    assert found.budget == exact.budget


@pytest.mark.parametrize("seed", range(4))
def test_sizes_after_moves_and_swaps_are_those_of_the_trees(seed: int) -> None:
    n, affinity = 7, random_affinity(7, 3, seed)
    budgets = (Budget(20.0, tasks=("t0", "t3", "t5")), Budget(30.0, tasks=("t1", "t3")), Budget(45.0))
    problem, limits = task_limits(budgets, "params", affinity, COSTS, None, "mean-pair")
    land = subset_landscape(problem.losses, problem.rules, limits)
    shared = np.zeros((3, n), np.int64)
    labels = max(subset_starts(land), key=land.size, default=shared)
    for start in (labels, shared, np.array(random_tree(names(n), 3, seed=seed).labels())):
        moves = price_moves(land, start)
        for t, sizes in enumerate(moves.sizes):
            for s, cluster in np.argwhere(np.isfinite(moves.costs[t])).tolist():
                moved = Tree.from_labels(names(n), apply_move(start, moves, s, t, cluster))
                shares = [nodes_for(moved, one.tasks or tuple(names(n)), COSTS) / one.amount for one in budgets]
                assert sizes[s, cluster] == pytest.approx(max(shares), rel=1e-12)
        fitting = land.fitting_swaps(start)
        for i in range(n):
            for j in range(n):
                swapped = start.copy()
                swapped[:, [i, j]] = start[:, [j, i]]
                tree = Tree.from_labels(names(n), swapped)
                shares = [nodes_for(tree, one.tasks or tuple(names(n)), COSTS) / one.amount for one in budgets]
                assert fitting[i, j] == (max(shares) <= 1 + 1e-12)


@pytest.mark.parametrize(
    ("n", "name"),
    [
        (20, "mean-max"),
        pytest.param(12, "mean-pair", marks=pytest.mark.slow),
        pytest.param(12, "medoid", marks=pytest.mark.slow),
    ],
)
def test_many_tasks(n: int, name: str) -> None:
    affinity = rsa_like_affinity(n, 3, 1)
    text = "60% params, 10 params for t0+t1+t2, 15 params for t2+t3+t4+t5"
    found = search(affinity, COSTS, text, objective=name)
    assert found.method == "local"
    assert nodes_for(found.tree, ("t0", "t1", "t2"), COSTS) <= 10
    assert nodes_for(found.tree, ("t2", "t3", "t4", "t5"), COSTS) <= 15
    assert tree_size(found.tree, COSTS) <= found.limit == pytest.approx(0.6 * n * sum(COSTS))
    assert [one.tasks for one in found.also] == [("t0", "t1", "t2"), ("t2", "t3", "t4", "t5")]
    free = search(affinity, COSTS, "60% params", objective=name)
    assert found.cost >= free.lower_bound - 1e-9
    assert 0 <= found.gap < 0.5


def test_tight_limits_for_many_tasks_leave_one_way_only() -> None:
    affinity = rsa_like_affinity(20, 3, 0)
    everywhere = search(affinity, COSTS, "7.5 params for t3+t9+t17")
    assert all(len({everywhere.tree.cluster_of(t, d) for t in ("t3", "t9", "t17")}) == 1 for d in range(3))
    with pytest.raises(BudgetError, match=r"7.4 params for t3\+t9 .*smallest feasible one is 7.5 params") as error:
        search(affinity, COSTS, "60% params, 7.4 params for t3+t9")
    assert error.value.smallest == 7.5
    apart = Constraints(apart=[["t3", "t9"]], shared_stages=1)
    with pytest.raises(BudgetError, match="smallest feasible one is 13 params"):
        search(affinity, COSTS, "12.9 params for t3+t9+t17", constraints=apart)
    found = search(affinity, COSTS, "13 params for t3+t9+t17", constraints=apart)
    assert nodes_for(found.tree, ("t3", "t9", "t17"), COSTS) == 13


def test_tables_that_fall_with_the_number_of_copies() -> None:
    falling = [[0, 9.0, 5.0, 1.0, *([1.0] * 9)], [0, 9.0, 5.0, 1.0, *([1.0] * 9)]]
    affinity = random_affinity(12, 2, 0)
    found = search(affinity, falling, "2 ms for t0+t1+t2", objective="mean-pair")
    assert found.also[0].size == 2.0
    with pytest.raises(BudgetError, match="smallest feasible one is 2 ms"):
        search(affinity, falling, "1.9 ms for t0+t1+t2")


@pytest.mark.parametrize("name", ["mean-pair", "medoid"])
def test_front_under_a_budget_for_some_tasks_is_that_of_all_trees(name: str) -> None:
    affinity = random_affinity(4, 3, 2)
    trees, cost = all_trees(4, 3), brute_costs(affinity, name)
    fits = np.array([nodes_for(t, ("t0", "t2"), COSTS) <= 12.0 for t in trees])
    sizes = np.array([nodes_for(t, tuple(names(4)), COSTS) for t in trees])
    expected: list[tuple[float, float]] = []
    for size in np.unique(sizes[fits]).tolist():
        least = float(cost[fits & (sizes <= size)].min())
        if not expected or least < expected[-1][1] - 1e-9:
            expected.append((size, least))
    front = pareto_front(affinity, COSTS, budget="12 params for t0+t2", objective=name)
    assert [(p.size, p.cost) for p in front] == [pytest.approx(pair, abs=1e-9) for pair in expected]
    assert all(p.proven and p.limit == np.inf and p.also[0].size <= 12.0 for p in front)
    local = pareto_front(affinity, COSTS, budget="12 params for t0+t2", objective=name, method="local")
    for point in local:
        assert point.cost >= cost[fits & (sizes <= point.size)].min() - 1e-9
        assert point.lower_bound <= cost[fits & (sizes <= point.size)].min() + 1e-9


def test_fronts_refuse_what_makes_no_sense() -> None:
    affinity = random_affinity(3, 2, 0)
    with pytest.raises(BudgetError, match="is for all tasks, and a front has every size"):
        pareto_front(affinity, [1.0, 1.0], budget="5 params")
    with pytest.raises(BudgetError, match="differ in what these need alone"):
        pareto_front(affinity, [1.0, 1.0], unit=["params", "flops"], budget="5 params for t0")


def test_random_trees_are_uniform_among_those_that_fit() -> None:
    text = "80% params, 8.5 params for t0+t1"
    trees = all_trees(4, 3)
    whole = tuple(names(4))
    fitting = {
        tree
        for tree in trees
        if nodes_for(tree, whole, COSTS) <= 0.8 * 4 * sum(COSTS) and nodes_for(tree, ("t0", "t1"), COSTS) <= 8.5
    }
    sampler, generator = tree_sampler(whole, 3, costs=COSTS, budget=text), random.Random(0)
    drawn = Counter(sampler.draw(generator) for _ in range(60 * len(fitting)))
    assert set(drawn) == fitting
    expected = 60.0
    chi = sum((count - expected) ** 2 / expected for count in drawn.values())
    freedom = len(fitting) - 1
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


def test_random_trees_say_why_there_are_none() -> None:
    with pytest.raises(BudgetError, match=r"smallest feasible one is 7\.5 params") as error:
        random_tree(names(12), 3, seed=0, costs=COSTS, budget="90% params, 7 params for t0+t1+t2")
    assert error.value.smallest == 7.5
    rare = "7.5 params for " + "+".join(names(20)[:12])
    with pytest.raises(BudgetError, match="too rare to be drawn"):
        random_tree(names(20), 3, seed=0, costs=COSTS, budget=rare)
    with pytest.raises(BudgetError, match="unknown task 't9'"):
        random_tree(names(3), 2, seed=0, costs=[1.0, 1.0], budget="5 params for t9")


def test_stitches_are_those_of_a_network_of_these_tasks() -> None:
    affinity, stitches = random_affinity(4, 3, 1), [0.5, 0.25, 2.0]
    found = search(affinity, COSTS, "20 params for t0+t1", stitch_sizes=stitches, objective="mean-pair")
    alone = Tree(
        ("t0", "t1"),
        [
            [[t for t in c if t in ("t0", "t1")] for c in stage if {"t0", "t1"} & set(c)]
            for stage in found.tree.partitions
        ],
    )
    assert found.also[0].size == pytest.approx(tree_size(alone, COSTS, stitch_sizes=stitches))


def test_the_smallest_budget_of_an_error_is_one_that_can_be_kept() -> None:
    affinity, heads = rsa_like_affinity(3, 2, 1), {"t0": 1e6 + 0.1, "t1": 0.3, "t2": 0.7}
    with pytest.raises(BudgetError) as caught:
        search(affinity, [0.3, 0.4], "1 params for t0+t1", head_costs=heads, method="exact")
    assert caught.value.smallest is not None
    least = Budget(caught.value.smallest, "params", tasks=("t0", "t1"))
    for method in ("exact", "local"):
        found = search(affinity, [0.3, 0.4], least, head_costs=heads, method=method)
        assert found.also[0].size == pytest.approx(1e6 + 0.1 + 0.3 + 0.7)


def test_local_search_finds_the_one_tree_that_fits_where_sizes_fall() -> None:
    table = [[0, 3, 2, 2, 9], [0, 5, 1, 1, 8]]
    found = search(rsa_like_affinity(4, 2, 1), table, "3 params for t0+t1", method="local")
    assert found.also[0].size == 3
