"""The exact search against enumeration: every objective, budget, unit and constraint."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import (
    OBJECTIVES,
    Budget,
    Constraints,
    SearchResult,
    Tree,
    clustering_cost,
    pareto_front,
    search,
    stage_shares,
    tree_size,
)
from branchnet.errors import AffinityError, BudgetError, TreeError
from branchnet.stages.costs import StageCost, StageCosts
from tests.clustering.toys import (
    affinities,
    all_trees,
    as_affinity,
    brute_costs,
    brute_sizes,
    random_affinity,
    rsa_like_affinity,
)

NAMES = st.sampled_from(sorted(OBJECTIVES))


def _random_costs(depth: int, seed: int, whole: bool) -> list[float]:
    generator = np.random.default_rng(seed)
    return (generator.integers(1, 5, depth) if whole else generator.uniform(0.1, 9, depth)).astype(float).tolist()


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-11, abs_tol=1e-12)


@settings(max_examples=400, deadline=None)
@given(affinities(max_tasks=5, max_depth=3), NAMES, st.floats(0.1, 1.1), st.integers(0, 999), st.booleans())
def test_search_finds_the_optimum(affinity: Affinity, name: str, share: float, seed: int, whole: bool) -> None:
    _check_optimum(affinity, name, share, seed, whole)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(affinities(max_tasks=5, max_depth=3), NAMES, st.floats(0.1, 1.1), st.integers(0, 999), st.booleans())
def test_search_finds_the_optimum_of_thousands(
    affinity: Affinity, name: str, share: float, seed: int, whole: bool
) -> None:
    _check_optimum(affinity, name, share, seed, whole)


def _check_optimum(affinity: Affinity, name: str, share: float, seed: int, whole: bool) -> None:
    depth, n = affinity.values.shape[:2]
    costs = _random_costs(depth, seed, whole)
    limit = share * n * sum(costs)
    sizes, values = brute_sizes(n, costs), brute_costs(affinity, name)
    fitting = sizes <= limit * (1 + 1e-12)
    if not fitting.any():
        with pytest.raises(BudgetError) as caught:
            search(affinity, costs, Budget(limit), objective=name)
        assert _close(caught.value.smallest or 0.0, sum(costs))
        return
    result = search(affinity, costs, Budget(limit), objective=name)
    best = float(values[fitting].min())
    assert result.proven
    assert _close(result.cost, best)
    assert result.cost == clustering_cost(result.tree, affinity, objective=name) == result.lower_bound
    assert result.size == tree_size(result.tree, costs) <= limit * (1 + 1e-12)
    tied = fitting & (values <= best + 1e-11 * abs(best) + 1e-13)
    assert _close(result.size, float(sizes[tied].min()))


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=5, max_depth=3), NAMES, st.integers(0, 999), st.booleans())
def test_front_is_the_whole_front(affinity: Affinity, name: str, seed: int, whole: bool) -> None:
    depth, n = affinity.values.shape[:2]
    costs = _random_costs(depth, seed, whole)
    points = sorted(zip(brute_sizes(n, costs).tolist(), brute_costs(affinity, name).tolist(), strict=True))
    expected: list[tuple[float, float]] = []
    for size, cost in points:
        if not expected or cost < expected[-1][1] - 1e-11 * abs(expected[-1][1]) - 1e-13:
            if expected and _close(expected[-1][0], size):
                expected.pop()
            expected.append((size, cost))
    front = pareto_front(affinity, costs, objective=name)
    assert len(front) == len(expected)
    for result, (size, cost) in zip(front, expected, strict=True):
        assert _close(result.size, size)
        assert _close(result.cost, cost)
        assert result.proven


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=4, max_depth=3), NAMES, st.data())
def test_constraints_against_enumeration(affinity: Affinity, name: str, data: st.DataObject) -> None:
    depth, n = affinity.values.shape[:2]
    shared = data.draw(st.integers(0, depth))
    separate = data.draw(st.integers(0, depth - shared))
    most = data.draw(st.none() | st.integers(1, n))
    pair = data.draw(st.permutations(affinity.tasks))[:2]
    together = [pair] if data.draw(st.booleans()) else []
    apart = [] if together else [pair]
    constraints = Constraints(shared, separate, most, together, apart)

    def allowed(tree: Tree) -> bool:
        common = tree.shared_depth(*pair)
        return (
            set(tree.widths[:shared]) <= {1}
            and set(tree.widths[depth - separate :]) <= {n}
            and (most is None or max(tree.widths) <= most)
            and (not together or common == depth - separate)
            and (not apart or common == shared)
        )

    costs = _random_costs(depth, 0, False)
    fine = np.array([allowed(tree) for tree in all_trees(n, depth)])
    if not fine.any():
        with pytest.raises((BudgetError, TreeError)):
            search(affinity, costs, Budget(1e9), objective=name, constraints=constraints)
        return
    sizes, values = brute_sizes(n, costs), brute_costs(affinity, name)
    limit = float(np.median(sizes[fine]))
    best = float(values[fine & (sizes <= limit * (1 + 1e-12))].min())
    result = search(affinity, costs, Budget(limit), objective=name, constraints=constraints)
    assert allowed(result.tree)
    assert _close(result.cost, best)


def test_extending_a_tree_leaves_it_untouched() -> None:
    affinity, costs = rsa_like_affinity(6, 3, 4), [1.0, 2.0, 3.0]
    running = Tree(["t0", "t1", "t2"], [[["t0", "t1"], ["t2"]], [["t0", "t1"], ["t2"]], [["t0"], ["t1"], ["t2"]]])
    result = search(affinity, costs, Budget(27.0), constraints=Constraints(extend=running))
    kept = [[[t for t in c if t in running.tasks] for c in p] for p in result.tree.partitions]
    assert Tree(running.tasks, [[c for c in p if c] for p in kept]) == running


def test_contradicting_constraints_are_refused() -> None:
    affinity = random_affinity(4, 2, 0)
    with pytest.raises(TreeError, match="'t0' and 't1' must and must not"):
        search(affinity, [1, 1], 8, constraints=Constraints(together=[["t0", "t1"]], apart=[["t0", "t1"]]))
    with pytest.raises(TreeError, match="task 'x'"):
        search(affinity, [1, 1], 8, constraints=Constraints(together=[["t0", "x"]]))
    with pytest.raises(TreeError, match="the tree to extend has 3 stages; expected 2"):
        search(affinity, [1, 1], 8, constraints=Constraints(extend=Tree.shared(["t0", "t1"], 3)))
    with pytest.raises(TreeError, match="do not fit in 2 stages"):
        search(affinity, [1, 1], 8, shared_stages=3)


def test_the_smallest_size_is_named_under_constraints() -> None:
    affinity, apart = random_affinity(4, 2, 0), Constraints(shared_stages=1, apart=[["t0", "t1"]])
    for method in ("exact", "local"):
        with pytest.raises(BudgetError, match="the smallest feasible one is 5 params") as caught:
            search(affinity, [1.0, 2.0], Budget(4.9), method=method, constraints=apart)
        assert caught.value.smallest == 1 * 1.0 + 2 * 2.0


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=4, max_depth=3), st.integers(0, 999))
def test_latency_tables(affinity: Affinity, seed: int) -> None:
    depth, n = affinity.values.shape[:2]
    table = np.zeros((depth, n + 1))
    table[:, 1:] = np.random.default_rng(seed).uniform(1, 3, (depth, n))
    sizes = np.array([sum(table[d, w] for d, w in enumerate(t.widths)) for t in all_trees(n, depth)])
    limit = float(np.median(sizes))
    result = search(affinity, table, Budget(limit, "latency"), objective="mean-max")
    assert _close(result.cost, float(brute_costs(affinity, "mean-max")[sizes <= limit].min()))
    assert _close(result.size, sum(table[d, w] for d, w in enumerate(result.tree.widths)))


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=6, max_depth=3), NAMES, st.integers(0, 999))
def test_more_room_is_never_worse(affinity: Affinity, name: str, seed: int) -> None:
    depth, n = affinity.values.shape[:2]
    costs = _random_costs(depth, seed, False)
    results: list[SearchResult] = []
    for share in np.linspace(1 / n, 1, 7):
        results.append(search(affinity, costs, Budget(float(share) + 1e-9, relative=True), objective=name))
        bound = search(affinity, costs, Budget(float(share) + 1e-9, relative=True), objective=name, shared_stages=1)
        assert bound.cost >= results[-1].cost - 1e-12 * abs(bound.cost)
    assert all(b.cost <= a.cost + 1e-12 * abs(a.cost) for a, b in pairwise(results))


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=6, max_depth=3), NAMES, st.integers(0, 999), st.randoms(use_true_random=False))
def test_permuting_tasks_changes_nothing(affinity: Affinity, name: str, seed: int, generator: random.Random) -> None:
    depth, n = affinity.values.shape[:2]
    costs = _random_costs(depth, seed, False)
    order = generator.sample(range(n), n)
    permuted = Affinity([affinity.tasks[i] for i in order], affinity.locations, affinity.values[:, order][:, :, order])
    first = search(affinity, costs, "60% params", objective=name)
    second = search(permuted, costs, "60% params", objective=name)
    assert _close(first.cost, second.cost)
    assert _close(first.size, second.size)
    assert _close(first.lower_bound, second.lower_bound)
    if n <= 5:
        sizes, values = brute_sizes(n, costs), brute_costs(affinity, name)
        ties = (sizes <= first.limit * (1 + 1e-9)) & (values <= first.cost + 1e-9 * abs(first.cost) + 1e-9)
        assert first.tree == second.tree or ties.sum() > 1


@pytest.mark.parametrize("method", ["exact", "local", "beam"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("noise", [0.0, 1e-15, -1e-15])
def test_identical_networks_share_everything(name: str, method: str, noise: float) -> None:
    values = 1 - noise * np.abs(random_affinity(5, 3, 2).values)
    values[:, range(5), range(5)] = 1.0
    for budget in ("100% params", "95% params"):
        found = search(as_affinity(values), [1.0, 2.0, 3.0], budget, objective=name, method=method)
        assert found.tree.widths == (1, 1, 1)
    front = pareto_front(as_affinity(values), [1.0, 2.0, 3.0], objective=name, method=method)
    assert [point.tree.widths for point in front] == [(1, 1, 1)]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), NAMES, st.integers(0, 9999), st.floats(0.3, 1.1))
def test_ties_are_relative_to_the_scale_of_the_measure(n: int, depth: int, name: str, seed: int, share: float) -> None:
    coarse = np.round(random_affinity(n, depth, seed).values * 2) / 2
    noise = 1e-12 * random_affinity(n, depth, seed + 1).values
    noise[:, range(n), range(n)] = 0.0
    costs = [1.0, 3.0, 4.0][:depth]
    values, sizes = brute_costs(as_affinity(coarse), name), brute_sizes(n, costs)
    fitting = sizes <= share * sizes.max() * (1 + 1e-12)
    if not fitting.any():
        return
    tied = fitting & (values <= values[fitting].min() + 1e-10)  # values without noise are whole parts apart
    smallest = tied & (sizes <= sizes[tied].min() + 1e-9)
    trees = [tree for tree, one in zip(all_trees(n, depth), smallest, strict=True) if one]
    expected = min(trees, key=lambda tree: tuple(reversed(tree.labels())))
    for affinity in (as_affinity(coarse), as_affinity(coarse + noise)):
        assert search(affinity, costs, f"{100 * share!r}% params", objective=name, method="exact").tree == expected


def test_differences_above_the_tie_decide() -> None:
    values = np.full((1, 3, 3), 1.0)
    values[0, 0, 1] = values[0, 1, 0] = 1 - 1e-7
    assert search(as_affinity(values), [1.0], "100% params", objective="sum-pair").tree.widths == (2,)
    values[0, 0, 1] = values[0, 1, 0] = 1 - 1e-10
    assert search(as_affinity(values), [1.0], "100% params", objective="sum-pair").tree.widths == (1,)


def test_ties_go_to_the_smaller_then_the_first_tree() -> None:
    equal = as_affinity(np.ones((2, 4, 4)))
    assert search(equal, [1.0, 2.0], Budget(12)).tree == Tree.shared(equal.tasks, 2)
    values = np.full((1, 4, 4), 0.5)
    values[0, np.arange(4), np.arange(4)] = 1.0
    result = search(as_affinity(values), [1.0], Budget(3), objective="sum-pair")
    assert result.tree.partitions[0] == (("t0", "t1"), ("t2",), ("t3",))


def test_a_number_that_may_be_a_share_gets_a_hint() -> None:
    with pytest.raises(BudgetError, match="for a share of separate networks write '60% params'"):
        search(random_affinity(4, 2, 0), [10.0, 10.0], 0.6)
    with pytest.raises(BudgetError) as caught:
        search(random_affinity(4, 2, 0), [10.0, 10.0], "1% params")
    assert "write" not in str(caught.value)


def test_stage_weights_by_cost() -> None:
    affinity = rsa_like_affinity(5, 2, 1)
    costs = StageCosts((StageCost("stage0", 10, 300), StageCost("stage1", 30, 100)))
    for by, weights in (("params", [0.5, 1.5]), ("flops", [1.5, 0.5])):
        assert stage_shares(costs, by) == weights
        named = search(affinity, costs, "60% params", objective="mean-max", stage_weights=by)
        given_ = search(affinity, costs, "60% params", objective="mean-max", stage_weights=weights)
        assert (named.tree, named.cost) == (given_.tree, given_.cost)
        assert named.cost == clustering_cost(named.tree, affinity, stage_weights=weights)
    with pytest.raises(BudgetError, match="expected StageCosts"):
        search(affinity, [1.0, 2.0], "60% params", stage_weights="flops")
    with pytest.raises(BudgetError, match="stage_weights is 'size'"):
        stage_shares(costs, "size")
    with pytest.raises(AffinityError, match="knows no costs"):
        clustering_cost(named.tree, affinity, stage_weights="params")  # type: ignore[arg-type]


def test_relative_budgets_count_known_heads() -> None:
    affinity = random_affinity(4, 2, 0)
    heads = dict.fromkeys(affinity.tasks, 5.0)
    result = search(affinity, [1.0, 1.0], Budget(0.8, relative=True), head_costs=heads)
    assert result.limit == pytest.approx(0.8 * (8 + 20))
    assert result.size == sum(result.tree.widths) + 20
    with pytest.raises(BudgetError, match="smallest feasible one is 22 params"):
        search(affinity, [1.0, 1.0], Budget(21.0), head_costs=heads)


def test_front_for_eight_tasks_agrees_with_single_searches() -> None:
    affinity, costs = rsa_like_affinity(8, 5, 0), [0.2, 1.2, 7.1, 14.9, 3.3]
    front = pareto_front(affinity, costs)
    for point in front[:: max(1, len(front) // 10)]:
        again = search(affinity, costs, Budget(point.size))
        assert (again.tree, again.cost) == (point.tree, point.cost)
