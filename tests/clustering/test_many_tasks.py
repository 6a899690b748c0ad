"""Heuristic searches and lower bounds: against the exact optimum, against each other, and under constraints."""

import math
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Budget, Constraints, Tree, pareto_front, random_tree, search
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds import chain_branch_and_bound as chains
from branchnet.clustering.bounds.clique_bounds import clique_diameters, stage_radii
from branchnet.clustering.bounds.lower_bounds import lower_bound, rising_bounds
from branchnet.clustering.heuristics.local_search import apply_move, price_moves
from branchnet.clustering.search_problem import make_problem
from branchnet.errors import BranchnetError, BudgetError
from tests.clustering.toys import (
    affinities,
    as_affinity,
    brute_costs,
    brute_sizes,
    names,
    random_affinity,
    rsa_like_affinity,
)

COSTS = [0.2, 1.2, 7.1, 14.9, 3.3, 5.0]
NAMES = st.sampled_from(sorted(OBJECTIVES))


@settings(max_examples=200, deadline=None)
@given(affinities(max_tasks=5, max_depth=3), NAMES, st.floats(0.01, 1.0), st.integers(0, 999))
def test_lower_bound_is_never_above_the_optimum(affinity: Affinity, name: str, share: float, seed: int) -> None:
    depth, n = affinity.values.shape[:2]
    costs = np.random.default_rng(seed).uniform(0.1, 9, depth).tolist()
    limit = (1 + share * (n - 1)) * sum(costs)  # between one network and separate ones
    fitting = brute_sizes(n, costs) <= limit
    problem = make_problem(affinity, costs, "params", objective=name)
    bound = lower_bound(problem.losses, problem.rules, problem.sizes.table, limit)
    best = float(brute_costs(affinity, name)[fitting].min())
    assert bound <= best + 1e-10 * max(abs(best), 1.0)
    if seed % 4 == 0:
        land = problem.landscape(limit)
        tighter = lower_bound(problem.losses, problem.rules, land.sizes, limit, target=best + 0.1 * abs(best) + 1e-3)
        assert bound <= tighter <= best + 1e-9 * max(abs(best), 1.0)


@pytest.mark.parametrize("name", ["mean-max", "diameter-sum"])
@pytest.mark.parametrize("small", [1, 4])
def test_chain_bounds_rise_and_stay_below_the_optimum(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chains of all sizes (small = 1) and of large clusters only, from targets at, near and far above it."""
    monkeypatch.setattr("branchnet.clustering.bounds.chain_tables.SMALL", small)
    gaps, single = [], []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        n, depth = int(generator.integers(6, 10)), int(generator.integers(1, 5))
        affinity = (rsa_like_affinity if seed % 2 else random_affinity)(n, depth, seed)
        costs = generator.uniform(0.1, 9, depth).tolist()
        constraints = [None, Constraints(max_clusters=n - 2), Constraints(apart=[["t0", "t1", "t2"]])][seed % 3]
        budget = Budget(float(generator.uniform(0.4, 0.9)), relative=True)
        best = search(affinity, costs, budget, objective=name, constraints=constraints, method="exact")
        problem = make_problem(affinity, costs, "params", objective=name, constraints=constraints)
        land = problem.landscape(best.limit)
        target = best.cost * float(generator.choice([1.0, 1.001, 1.5])) + 1e-9
        bounds = list(rising_bounds(problem.losses, problem.rules, land.sizes, land.limit, target=target))
        assert max(bounds) <= best.cost + 1e-9
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(bounds[1:]))
        gaps.append(1 - max(bounds) / best.cost)
        single.append(1 - bounds[0] / best.cost)
    assert np.mean(gaps) < np.mean(single)  # chains add something to stages on their own


@pytest.mark.parametrize("name", ["mean-max", "diameter-sum"])
@pytest.mark.parametrize("seed", range(5))
def test_affinities_above_one_are_bounded(name: str, seed: int) -> None:
    affinity = as_affinity(random_affinity(5, 3, seed).values + (0.7 + 0.3 * seed) * (1 - np.eye(5)))
    assert affinity.values.max() > 1
    problem = make_problem(affinity, COSTS[:3], "params", objective=name)
    limit = 0.7 * problem.sizes.separate
    best = float(brute_costs(affinity, name)[brute_sizes(5, COSTS[:3]) <= limit].min())
    for target in (best, best + 1.0):
        bounds = list(rising_bounds(problem.losses, problem.rules, problem.sizes.table, limit, target=target))
        assert max(bounds) <= best + 1e-12


def test_an_affinity_above_one_by_rounding_costs_no_bound() -> None:
    values = rsa_like_affinity(15, 3, 0).values.copy()
    whole = search(as_affinity(values), COSTS[:3], "40% params", objective="mean-max")
    values[0, [0, 1], [1, 0]] = 1 + 4e-16
    result = search(as_affinity(values), COSTS[:3], "40% params", objective="mean-max")
    assert result.lower_bound > 0.9 * whole.lower_bound > 0


@pytest.mark.parametrize("name", ["gain", "mean-pair", "sum-pair"])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_of_one_shared_network_is_its_cost(name: str, seed: int) -> None:
    affinity = random_affinity(7, 1, seed)
    problem = make_problem(affinity, [1.0], "params", objective=name)
    cost = problem.losses.tree_cost(Tree.shared(affinity.tasks, 1))
    assert lower_bound(problem.losses, problem.rules, problem.sizes.table, 1.0) == pytest.approx(cost, abs=2e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_a_constant_in_the_cost_shifts_the_bounds_and_changes_nothing_else(name: str, offset: float) -> None:
    problem = make_problem(rsa_like_affinity(7, 3, 1), COSTS[:3], "params", objective=name)
    shifted = replace(problem.losses, offset=offset)
    limit = 0.6 * problem.sizes.separate
    best = search(problem.losses, COSTS[:3], Budget(limit), method="exact").cost

    def bounds(losses: StageLosses, target: float) -> list[float]:
        return list(rising_bounds(losses, problem.rules, problem.sizes.table, limit, target=target, effort=20))

    # Of so few binary digits that adding the offset rounds nothing: subgradient steps would amplify any difference.
    target = math.ceil((best + 0.1) * 2**20) / 2**20
    plain = bounds(problem.losses, target)
    assert bounds(shifted, target + offset) == pytest.approx([bound + offset for bound in plain], abs=1e-9)
    assert len(bounds(shifted, plain[0] - 1e-6 + offset)) == 1  # the first bound reaches the target: nothing to tighten


@pytest.mark.parametrize("name", ["mean-pair", "sum-pair"])
def test_a_bound_that_reaches_the_cost_is_a_proof(name: str) -> None:
    affinity = random_affinity(15, 1, 0)
    result = search(affinity, [1.0], Budget(1.0), objective=name)
    assert result.method == "local"
    assert result.proven
    assert result.lower_bound == pytest.approx(result.cost, rel=1e-12)
    assert result.lower_bound <= result.cost
    assert not search(affinity, [1.0], Budget(5.0), objective=name).proven


@pytest.mark.parametrize("effort", [1, 3])
def test_effort_limits_the_number_of_branchings(effort: int) -> None:
    """After one bound for each range of chains (4 stages, sizes 5 to 10)."""
    problem = make_problem(random_affinity(10, 4, 1), COSTS[:4], "params", objective="mean-max")
    limit = 0.5 * problem.sizes.separate

    def bounds(effort: int) -> list[float]:
        radii = [stage_radii(pairs) for pairs in problem.losses.pairs]
        table = problem.sizes.table
        return list(chains.chain_bounds(problem.losses, radii, problem.rules, table, limit, 1e3, effort))

    assert len(bounds(effort)) == 4 * 6 + effort + 1
    assert len(bounds(20)) > 1 + 4 * 6 + 10


def test_multipliers_that_grow_large_raise_no_bound_by_rounding() -> None:
    """All stages separate: the optimum is 0; a target far above it makes the steps ever longer."""
    for seed in range(6):
        problem = make_problem(
            rsa_like_affinity(2 + seed, 4, seed),
            COSTS[:4],
            "params",
            objective="sum-pair",
            constraints=Constraints(separate_stages=4),
        )
        limit = problem.sizes.separate
        bounds = rising_bounds(problem.losses, problem.rules, problem.sizes.table, limit, target=1.0, effort=60)
        assert max(bounds) <= 0.0


def test_a_time_limit_is_looked_at_while_chains_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    node = chains._Search.node
    monkeypatch.setattr(chains._Search, "node", lambda *given: asked.append(given) or node(*given))
    problem = make_problem(rsa_like_affinity(15, 3, 0), COSTS[:3], "params")
    limit = 0.4 * problem.sizes.separate
    bounds = rising_bounds(problem.losses, problem.rules, problem.sizes.table, limit, target=1.0)
    for taken, _ in enumerate(islice(bounds, 20)):
        assert len(asked) <= taken


@pytest.mark.parametrize("seed", range(3))
def test_latencies_that_fall_with_more_copies(seed: int) -> None:
    """Measured latencies need not grow: at the smallest feasible budget both methods find a tree."""
    table = np.random.default_rng(seed).uniform(1, 9, (3, 7))
    table[:, 0] = 0.0
    table[-1, 3] = 0.5
    affinity = rsa_like_affinity(6, 3, seed)
    with pytest.raises(BudgetError) as caught:
        search(affinity, table, "0.1 ms", method="exact")
    smallest = caught.value.smallest
    assert smallest is not None
    for method in ("exact", "local"):
        assert search(affinity, table, Budget(smallest, "latency"), method=method).size == pytest.approx(smallest)
    with pytest.raises(BudgetError) as caught:
        search(affinity, table, "0.1 ms", method="local")
    assert caught.value.smallest == pytest.approx(smallest)


@pytest.mark.parametrize("seed", range(3))
def test_clique_diameters_by_enumeration(seed: int) -> None:
    loss = 1 - random_affinity(8, 1, seed).values[0]
    masks = [np.flatnonzero([m >> i & 1 for i in range(8)]) for m in range(1, 256)]
    diameters = clique_diameters(loss)
    for size in range(2, 9):
        assert diameters[size] == min(loss[np.ix_(c, c)].max() for c in masks if len(c) == size)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_moves_are_priced_as_the_trees_they_lead_to(name: str) -> None:
    affinity = rsa_like_affinity(7, 3, 5)
    problem = make_problem(affinity, COSTS[:3], "params", objective=name)
    land = problem.landscape(1e9)
    tree = random_tree(affinity.tasks, 3, seed=2)
    labels = np.array(tree.labels())
    moves = price_moves(land, labels)
    seen = 0
    for t, (costs, sizes) in enumerate(zip(moves.costs, moves.sizes, strict=True)):
        for s, cluster in np.argwhere(np.isfinite(costs)):
            moved = Tree.from_labels(affinity.tasks, apply_move(labels, moves, s, t, cluster))
            assert costs[s, cluster] == pytest.approx(problem.losses.tree_cost(moved), abs=1e-12)
            assert sizes[s, cluster] == pytest.approx(problem.sizes.of_widths(moved.widths))
            seen += 1
    assert seen > 20


def test_local_search_reaches_the_optimum_of_small_problems() -> None:
    gaps = []
    for seed in range(12):
        affinity = (rsa_like_affinity if seed % 2 else random_affinity)(7, 4, seed)
        exact = search(affinity, COSTS[:4], "50% params", objective="mean-max")
        found = search(affinity, COSTS[:4], "50% params", objective="mean-max", method="local")
        assert found.cost >= exact.cost - 1e-12
        assert found.lower_bound <= exact.cost + 1e-12
        gaps.append(found.cost / exact.cost - 1)
    assert np.median(gaps) < 1e-12
    assert max(gaps) < 0.05


@pytest.mark.parametrize("name", ["mean-max", "mean-pair"])
def test_many_tasks_beat_the_published_beam_search(name: str) -> None:
    affinity = rsa_like_affinity(16, 4, 1)
    found = search(affinity, COSTS[:4], "40% params", objective=name)
    beam = search(affinity, COSTS[:4], "40% params", objective=name, method="beam")
    assert found.method == "local"
    assert found.cost <= beam.cost
    assert found.lower_bound <= found.cost
    assert max(found.lower_bound, beam.lower_bound) <= min(found.cost, beam.cost)
    assert found.gap < 0.35
    assert max(found.size, beam.size) <= found.limit * (1 + 1e-12)


def test_same_seed_same_tree() -> None:
    affinity = rsa_like_affinity(15, 3, 2)
    results = [search(affinity, COSTS[:3], "40% params", seed=4) for _ in range(2)]
    assert results[0] == results[1]


def test_many_tasks_obey_constraints() -> None:
    affinity = rsa_like_affinity(16, 4, 3)
    constraints = Constraints(shared_stages=1, max_clusters=9, together=[["t0", "t1"]], apart=[["t2", "t3", "t4"]])
    result = search(affinity, COSTS[:4], "45% params", constraints=constraints)
    assert result.tree.widths[0] == 1
    assert max(result.tree.widths) <= 9
    assert result.tree.shared_depth("t0", "t1") == 4
    assert result.tree.shared_depth("t2", "t3") == result.tree.shared_depth("t3", "t4") == 1
    free = search(affinity, COSTS[:4], "45% params")
    assert free.lower_bound <= result.cost


def test_extending_many_tasks_leaves_the_tree_untouched() -> None:
    running = random_tree(names(6), 3, seed=1)
    affinity = rsa_like_affinity(15, 3, 4)
    result = search(affinity, COSTS[:3], "70% params", constraints=Constraints(extend=running))
    kept = [[[t for t in c if t in running.tasks] for c in p] for p in result.tree.partitions]
    assert Tree(running.tasks, [[c for c in p if c] for p in kept]) == running


def test_time_limit_returns_a_tree_with_its_bound() -> None:
    affinity = rsa_like_affinity(20, 4, 0)
    result = search(affinity, COSTS[:4], "40% params", time_limit=0.0)
    assert "time limit" in result.why
    assert result.lower_bound <= result.cost
    small = search(rsa_like_affinity(8, 4, 0), COSTS[:4], "40% params", method="exact", time_limit=0.0)
    assert "time limit" in small.why
    assert small.lower_bound <= small.cost


def test_a_stopped_exact_search_returns_the_tree_of_the_local_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    affinity = rsa_like_affinity(8, 4, 0)
    exact = search(affinity, COSTS[:4], "40% params", objective="mean-max", method="exact")
    local = search(affinity, COSTS[:4], "40% params", objective="mean-max", method="local")
    monkeypatch.setattr("branchnet.clustering.search_problem.width_table", stopped)
    monkeypatch.setattr("branchnet.clustering.tree_search._LONG_WORK", 0)
    result = search(affinity, COSTS[:4], "40% params", objective="mean-max", method="exact")
    assert "interrupted" in result.why
    assert (result.tree, result.cost, result.lower_bound) == (local.tree, local.cost, local.lower_bound)
    assert result.lower_bound <= exact.cost + 1e-12 <= result.cost + 2e-12


def test_refuses_the_exact_method_where_it_cannot_fit() -> None:
    with pytest.raises(BranchnetError, match="20 tasks and 3 stages have too many partitions"):
        search(rsa_like_affinity(20, 3, 0), COSTS[:3], "40% params", method="exact")


def test_a_bound_that_is_interrupted_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    affinity = rsa_like_affinity(15, 3, 0)
    whole = search(affinity, COSTS[:3], "40% params", objective="mean-max")
    monkeypatch.setattr("branchnet.clustering.bounds.chain_branch_and_bound._Search.children", interrupted)
    result = search(affinity, COSTS[:3], "40% params", objective="mean-max")
    assert "its bound was interrupted" in result.why
    assert result.tree == whole.tree
    assert 0 < result.lower_bound < whole.lower_bound <= result.cost
    monkeypatch.setattr("branchnet.clustering.tree_search._LONG_WORK", 0)
    before = search(rsa_like_affinity(9, 3, 0), COSTS[:3], "40% params", objective="mean-max", method="exact")
    assert before.why == "its bound was interrupted before the exact method began"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("mean-max", 0.05), ("mean-pair", 0.15)])
def test_gaps_at_forty_tasks(name: str, most: float) -> None:
    result = search(rsa_like_affinity(40, 6, 1), COSTS, "40% params", objective=name)
    assert result.lower_bound <= result.cost
    assert result.gap < most


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean-max", "mean-pair"])
def test_two_hundred_tasks_have_a_valid_bound(name: str) -> None:
    result = search(rsa_like_affinity(200, 6, 0), COSTS, "40% params", objective=name)
    assert 0 < result.lower_bound <= result.cost
    assert result.size <= result.limit * (1 + 1e-12)


def test_interruption_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("branchnet.clustering.heuristics.heuristic.descend", interrupted)
    result = search(rsa_like_affinity(15, 3, 0), COSTS[:3], "40% params")
    assert "interrupted" in result.why


def test_infeasible_budgets_name_the_smallest_size() -> None:
    with pytest.raises(BudgetError) as caught:
        search(rsa_like_affinity(15, 3, 0), COSTS[:3], Budget(1.0))
    assert caught.value.smallest == pytest.approx(sum(COSTS[:3]))


def test_front_of_many_tasks_is_ordered_and_bounded() -> None:
    front = pareto_front(rsa_like_affinity(14, 2, 0), COSTS[:2])
    assert all(a.size < b.size and a.cost > b.cost for a, b in pairwise(front))
    assert all(point.lower_bound <= point.cost for point in front)
    assert front[0].tree.widths == (1, 1)
    assert front[-1].cost == 0.0


def test_an_interrupted_front_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("branchnet.clustering.heuristics.heuristic.descend", interrupted)
    front = pareto_front(rsa_like_affinity(14, 2, 0), COSTS[:2])
    assert len(front) == 1
    assert "interrupted" in front[0].why


def test_why_names_the_reason() -> None:
    assert "15 tasks" in search(rsa_like_affinity(15, 2, 0), COSTS[:2], "50% params", time_limit=0.0).why
    assert search(rsa_like_affinity(5, 2, 0), COSTS[:2], "50% params", method="exact").why == "asked for"
