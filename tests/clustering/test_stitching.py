"""The objective `stitch` against all trees with all donors: budgets, fronts, ties, constraints, large problems."""

import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.cli.commands.search import as_record
from branchnet.clustering import (
    Budget,
    Constraints,
    SearchResult,
    Tree,
    clustering_cost,
    compare_sharing,
    pareto_front,
    search,
    stability,
    tree_size,
)
from branchnet.clustering.search_problem import StitchProblem, make_problem
from branchnet.clustering.stitching.chain_fronts import chain_table, chain_work
from branchnet.errors import AffinityError, BranchnetError, BudgetError, TreeError
from branchnet.reporting.pages.page_sections import certainty
from tests.clustering.stitch_toys import (
    brute_stitch,
    brute_stitch_sizes,
    kept_assignments,
    path_changes,
    random_losses,
    stitch_affinity_of,
    stitch_like_losses,
    stitch_losses_drawn,
    tree_loss,
)
from tests.clustering.test_exact_estimates import held_bytes
from tests.clustering.toys import Counting, all_trees

COSTS = [0.2, 1.2, 7.1, 14.9, 3.3, 5.0]
FEW = settings(max_examples=40, deadline=None)


def numbers(depth: int, seed: int, most: int) -> list[float]:
    return np.random.default_rng(seed).integers(0 if most > 5 else 1, most, depth).astype(float).tolist()


def loss_of(affinity: Affinity) -> np.ndarray:
    return 1.0 - affinity.values


def best_of(values: np.ndarray, fitting: np.ndarray) -> tuple[float, float]:
    """The fewest poor pairs, then the least loss."""
    fewest = values[fitting, 0].min()
    return fewest, values[fitting & (values[:, 0] == fewest), 1].min()


def check_best(result: SearchResult, affinity: Affinity, values: np.ndarray, sizes: np.ndarray) -> None:
    """Against all trees: the fewest forced pairs, the least loss, the smaller size, and donors that attain them."""
    fitting = sizes <= result.limit * (1 + 1e-12)
    fewest, least = best_of(values, fitting)
    assert result.proven
    assert len(result.forced) == fewest
    assert result.cost == pytest.approx(least, abs=2e-9)
    assert result.lower_bound == pytest.approx(result.cost, abs=2e-9)
    assert result.lower_bound <= result.cost
    tied = fitting & (values[:, 0] == fewest) & (values[:, 1] <= least + 1e-10)
    assert result.size <= sizes[tied].min() * (1 + 1e-12)
    tree = all_trees(len(affinity.tasks), len(affinity.locations)).index(result.tree)
    assert result.size == pytest.approx(sizes[tree], abs=1e-9)


@FEW
@given(stitch_losses_drawn(), st.floats(0, 1), st.integers(0, 999), st.booleans(), st.sampled_from(["exact", "milp"]))
def test_the_best_tree_by_enumeration(losses: np.ndarray, share: float, seed: int, stitches: bool, method: str) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    costs, extra = numbers(depth, seed, 5), numbers(depth, seed + 1, 9) if stitches else None
    sizes = brute_stitch_sizes(n, costs, extra)
    limit = float(np.quantile(sizes, share))
    found = search(affinity, costs, Budget(limit), objective="stitch", method=method, stitch_sizes=extra)
    check_best(found, affinity, brute_stitch(loss_of(affinity)), sizes)
    assert found.cost == pytest.approx(clustering_cost(found.tree, affinity, objective="stitch"), abs=1e-9)
    assert found.size == tree_size(found.tree, costs, stitch_sizes=extra)
    assert found.method == method


@FEW
@given(stitch_losses_drawn(high=1.2), st.floats(0, 1), st.sampled_from(["exact", "milp", "local"]))
def test_poor_pairs_are_forced_by_the_budget_only(losses: np.ndarray, share: float, method: str) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    values, sizes = brute_stitch(loss_of(affinity)), brute_stitch_sizes(n, COSTS[:depth], None)
    found = search(affinity, COSTS[:depth], Budget(float(np.quantile(sizes, share))), objective="stitch", method=method)
    if method != "local":
        check_best(found, affinity, values, sizes)
    donors = tuple(tuple(affinity.tasks.index(a) for a in stage) for stage in found.donors or ())
    changes = path_changes(found.tree, donors)
    assert found.cost == pytest.approx(sum(loss_of(affinity)[change] for change in changes), abs=1e-12)
    named = {(affinity.locations[d], affinity.tasks[a], affinity.tasks[t]) for d, a, t in changes}
    assert {pair[:3] for pair in found.forced} <= named
    assert all(pair.loss >= 0.9 for pair in found.forced)
    with_as_few = (sizes <= found.limit * (1 + 1e-12)) & (values[:, 0] <= len(found.forced))
    assert found.lower_bound <= values[with_as_few, 1].min() + 1e-9


@FEW
@given(stitch_losses_drawn(high=1.2), st.integers(0, 999), st.booleans())
def test_the_front_is_the_whole_front(losses: np.ndarray, seed: int, stitches: bool) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    costs, extra = numbers(depth, seed, 5), numbers(depth, seed + 1, 9) if stitches else None
    sizes, values = brute_stitch_sizes(n, costs, extra), brute_stitch(loss_of(affinity))
    expected: list[tuple[float, float, float]] = []
    for size in np.unique(sizes):
        fewest, least = best_of(values, sizes <= size)
        if not expected or fewest < expected[-1][1] or least < expected[-1][2] - 1e-9:
            expected.append((size, fewest, least))
    front = pareto_front(affinity, costs, objective="stitch", stitch_sizes=extra)
    assert [(p.size, len(p.forced)) for p in front] == [(size, count) for size, count, _ in expected]
    assert [p.cost for p in front] == pytest.approx([least for *_, least in expected], abs=1e-9)
    assert all(point.proven for point in front)


def test_fronts_agree_with_the_integer_programme() -> None:
    affinity, stitches = stitch_affinity_of(stitch_like_losses(6, 3, 2)), [3.0, 1.0, 0.5]
    front = pareto_front(affinity, COSTS[:3], objective="stitch", stitch_sizes=stitches)
    assert len(front) > 10
    for point in front[:: len(front) // 8]:
        limit = Budget(point.size)
        again = search(affinity, COSTS[:3], limit, objective="stitch", stitch_sizes=stitches, method="milp")
        assert again.proven
        assert len(again.forced) == len(point.forced)
        assert (again.cost, again.size) == pytest.approx((point.cost, point.size), abs=2e-9)


def test_sizes_from_a_table() -> None:
    for seed in range(8):
        affinity = stitch_affinity_of(random_losses(4, 2, seed))
        table = np.zeros((2, 5))
        table[:, 1:] = np.random.default_rng(seed).uniform(1, 3, (2, 4))
        sizes = np.array([sum(table[d, w] for d, w in enumerate(tree.widths)) for tree in all_trees(4, 2)])
        for method in ("exact", "milp"):
            budget = Budget(float(np.median(sizes)), "latency")
            found = search(affinity, table, budget, objective="stitch", method=method)
            check_best(found, affinity, brute_stitch(loss_of(affinity)), sizes)


@FEW
@given(stitch_losses_drawn(), st.data())
def test_task_weights_multiply_what_tasks_lose(losses: np.ndarray, data: st.DataObject) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=n, max_size=n)))
    named = dict(zip(affinity.tasks, weights.tolist(), strict=True))
    sizes = brute_stitch_sizes(n, COSTS[:depth], None)
    limit = Budget(float(np.median(sizes)))
    found = search(affinity, COSTS[:depth], limit, objective="stitch", task_weights=named)
    check_best(found, affinity, brute_stitch(loss_of(affinity), weights), sizes)
    cost = clustering_cost(found.tree, affinity, objective="stitch", task_weights=named)
    assert cost == pytest.approx(tree_loss(found.tree, loss_of(affinity), weights), abs=1e-12)


@FEW
@given(stitch_losses_drawn(), st.integers(0, 10_000))
def test_the_cost_of_a_tree_is_that_of_its_best_donors(losses: np.ndarray, pick: int) -> None:
    affinity = stitch_affinity_of(losses)
    trees = all_trees(losses.shape[1], losses.shape[0])
    tree = trees[pick % len(trees)]
    cost = clustering_cost(tree, affinity, objective="stitch")
    assert cost == pytest.approx(tree_loss(tree, loss_of(affinity)), abs=1e-12)


def test_donors_that_do_not_keep_their_branch_may_lose_less_and_need_more_stitches() -> None:
    """The example of the module `chains`: why donors keep their branch."""
    losses = np.ones((2, 3, 3))
    losses[0, 0, 1] = losses[0, 0, 2] = losses[1, 1, 0] = 0.0
    tree = Tree(["t0", "t1", "t2"], [[["t0", "t1", "t2"]], [["t0", "t1"], ["t2"]]])
    assert sum(losses[change] for change in path_changes(tree, ((0,), (1, 2)))) == 0.0
    assert ((0,), (1, 2)) not in [donors for donors, _ in kept_assignments(tree)]
    assert clustering_cost(tree, stitch_affinity_of(losses), objective="stitch") >= 1.0


@FEW
@given(stitch_losses_drawn(max_depth=2), st.data())
def test_constraints_on_widths(losses: np.ndarray, data: st.DataObject) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    shared = data.draw(st.integers(0, depth))
    separate = data.draw(st.integers(0, depth - shared))
    most = data.draw(st.none() | st.integers(1, n))
    constraints = Constraints(shared, separate, most)
    widths = np.array([tree.widths for tree in all_trees(n, depth)])
    fine = (widths[:, :shared] == 1).all(axis=1) & (widths[:, depth - separate :] == n).all(axis=1)
    fine &= (widths <= (most or n)).all(axis=1)
    values, sizes = brute_stitch(loss_of(affinity)), brute_stitch_sizes(n, COSTS[:depth], None)
    for method in ("exact", "milp"):
        if not fine.any():
            with pytest.raises(BudgetError, match="no tree meets the constraints"):
                search(affinity, COSTS[:depth], 1e9, objective="stitch", constraints=constraints, method=method)
            continue
        limit = Budget(float(np.median(sizes[fine])))
        found = search(affinity, COSTS[:depth], limit, objective="stitch", constraints=constraints, method=method)
        assert found.proven
        assert found.tree in [tree for tree, one in zip(all_trees(n, depth), fine, strict=True) if one]
        fewest, least = best_of(values, fine & (sizes <= limit.amount * (1 + 1e-12)))
        assert (len(found.forced), found.cost) == (fewest, pytest.approx(least, abs=2e-9))


def test_the_smallest_size_is_named() -> None:
    affinity = stitch_affinity_of(random_losses(4, 2, 0))
    smallest = brute_stitch_sizes(4, [1.0, 2.0], [9.0, 3.0]).min()
    for method in ("exact", "milp"):
        with pytest.raises(BudgetError, match="the smallest feasible one is") as caught:
            search(affinity, [1.0, 2.0], Budget(1.0), objective="stitch", stitch_sizes=[9.0, 3.0], method=method)
        assert caught.value.smallest == smallest


@FEW
@given(stitch_losses_drawn(), st.randoms(use_true_random=False))
def test_permuting_tasks_changes_nothing(losses: np.ndarray, generator: random.Random) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    order = generator.sample(range(n), n)
    values = affinity.values[:, order][:, :, order]
    tasks = [affinity.tasks[i] for i in order]
    permuted = Affinity(tasks, affinity.locations, values, measure="stitch", directed=True)
    first, second = (
        search(one, COSTS[:depth], f"{70 if n > 1 else 100}% params", objective="stitch")
        for one in (affinity, permuted)
    )
    assert (first.cost, first.size, first.forced == second.forced) == (second.cost, second.size, True)
    values, sizes = brute_stitch(loss_of(affinity)), brute_stitch_sizes(n, COSTS[:depth], None)
    ties = (sizes <= first.limit * (1 + 1e-9)) & (values[:, 1] <= first.cost + 1e-8)
    assert first.tree == second.tree or ties.sum() > 1


def test_noise_below_a_tie_changes_nothing() -> None:
    coarse = np.round(random_losses(5, 3, 3) * 4) / 4
    noise = 1e-12 * random_losses(5, 3, 4)
    first, second = (
        search(stitch_affinity_of(one), COSTS[:3], "60% params", objective="stitch") for one in (coarse, coarse + noise)
    )
    assert first.tree == second.tree


def test_identical_networks_share_everything() -> None:
    for method in ("exact", "milp"):
        found = search(
            stitch_affinity_of(np.zeros((3, 5, 5))), [1.0, 2.0, 3.0], "90% params", objective="stitch", method=method
        )
        assert found.tree.widths == (1, 1, 1)


def test_what_cannot_be_is_refused() -> None:
    affinity = stitch_affinity_of(random_losses(3, 2, 0))
    for field in ("together", "apart"):
        with pytest.raises(TreeError, match="shared_stages, separate_stages and max_clusters only"):
            search(affinity, [1, 1], 6, objective="stitch", constraints=Constraints(**{field: [["t0", "t1"]]}))
    with pytest.raises(AffinityError, match="stage_weights weigh the terms of stages"):
        search(affinity, [1, 1], 6, objective="stitch", stage_weights=[1.0, 2.0])
    with pytest.raises(AffinityError, match="stage_weights weigh the terms of stages"):
        clustering_cost(Tree.shared(affinity.tasks, 2), affinity, objective="stitch", stage_weights=[1.0, 2.0])
    for weights in ({"t0": 1.0}, {"t0": 1.0, "t1": 1.0, "t2": -1.0}, {"t0": 1.0, "t1": 1.0, "t2": math.nan}):
        with pytest.raises(AffinityError, match="task_weights"):
            search(affinity, [1, 1], 6, objective="stitch", task_weights=weights)
    with pytest.raises(AffinityError, match="which 'mean-pair' does not know"):
        search(
            affinity.symmetric(),
            [1, 1],
            6,
            objective="mean-pair",
            task_weights=dict.fromkeys(affinity.tasks, 1.0),
        )
    with pytest.raises(BranchnetError, match="does not know objective='stitch'"):
        search(affinity, [1, 1], 6, objective="stitch", method="beam")
    with pytest.raises(BranchnetError, match="solves objective='stitch' only"):
        search(affinity, [1, 1], 6, objective="medoid", method="milp")
    with pytest.raises(AffinityError, match="no sum over clusters"):
        compare_sharing(affinity, [1, 1], objective="stitch")
    with pytest.raises(AffinityError, match="or objective='medoid' or 'stitch'"):
        search(affinity, [1, 1], 6, objective="mean-pair")
    with pytest.raises(TreeError, match="expected 2, as the affinities have"):
        clustering_cost(Tree.shared(affinity.tasks, 3), affinity, objective="stitch")


def test_forced_pairs_are_printed() -> None:
    found = search(stitch_affinity_of(np.full((1, 2, 2), 0.95)), [1.0], Budget(1.0), objective="stitch")
    assert found.forced == (("stage0", "t0", "t1", pytest.approx(0.95)),)
    section = certainty([], found, None, None)
    assert section is not None
    for text in (str(found), section.content, str(as_record(found)["forced"])):
        assert "t0" in text
        assert "0.95" in text
    assert "t1 on features of t0 at stage0 (loss 0.95)" in str(found)
    free = search(stitch_affinity_of(np.full((1, 2, 2), 0.95)), [1.0], Budget(2.0), objective="stitch")
    assert free.forced == ()
    assert "constant predictor" not in str(free)


def test_stability_of_directed_losses() -> None:
    affinity = stitch_affinity_of(stitch_like_losses(4, 2, 1))
    errors = np.full(affinity.values.shape, 1e-6)
    noisy = Affinity(
        affinity.tasks, affinity.locations, affinity.values, "stitch", standard_errors=errors, directed=True
    )
    result = search(noisy, [1.0, 2.0], "70% params", objective="stitch", stitch_sizes=[0.5, 0.1])
    assert stability(result, noisy, [1.0, 2.0], stitch_sizes=[0.5, 0.1], samples=5).same_tree == 1.0


@pytest.mark.parametrize(("n", "depth"), [(1, 1), (2, 3), (5, 1), (6, 3)])
def test_work_and_memory_are_what_is_compared_and_held(n: int, depth: int) -> None:
    problem = make_problem(stitch_affinity_of(random_losses(n, depth, 0)), [1.0] * depth, "params", objective="stitch")
    assert isinstance(problem, StitchProblem)
    deadline = Counting()
    table = chain_table(problem.losses, problem.least, problem.most, deadline)
    compared, held = chain_work(n, depth)
    assert compared == deadline.announced == deadline.counted
    assert held_bytes(table._levels) <= held


def test_a_time_limit_leaves_a_tree_and_a_bound() -> None:
    affinity = stitch_affinity_of(stitch_like_losses(24, 4, 0))
    found = search(affinity, COSTS[:4], "40% params", objective="stitch", time_limit=0.0)
    assert "time limit" in found.why
    assert not found.proven
    assert 0 < found.lower_bound <= found.cost
    small = search(
        stitch_affinity_of(stitch_like_losses(8, 4, 0)), COSTS[:4], "40% params", objective="stitch", time_limit=0.0
    )
    assert "stopped at the time limit" in small.why
    assert small.lower_bound <= small.cost


def test_the_descent_is_near_the_optimum() -> None:
    gaps = []
    for seed in range(6):
        affinity = stitch_affinity_of(stitch_like_losses(9, 4, seed))
        best = search(affinity, COSTS[:4], "50% params", objective="stitch")
        found = search(affinity, COSTS[:4], "50% params", objective="stitch", method="local")
        assert best.cost - 1e-12 <= found.cost
        assert found.lower_bound <= best.cost
        gaps.append(found.cost / best.cost - 1)
    assert np.median(gaps) < 0.05


@pytest.mark.slow
def test_twelve_tasks_are_proven_within_a_minute() -> None:
    affinity = stitch_affinity_of(stitch_like_losses(12, 6, 1))
    results = []
    for method in ("exact", "milp"):
        began = time.perf_counter()
        results.append(search(affinity, COSTS, "50% params", objective="stitch", method=method))
        seconds = time.perf_counter() - began
        print(f"12 tasks, {method}: {seconds:.1f} s")
        assert seconds < 60
    assert all(result.proven for result in results)
    assert results[0].cost == pytest.approx(results[1].cost, abs=2e-9)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["30% params", "60% params"])
def test_forty_tasks_have_a_tight_bound(budget: str) -> None:
    began = time.perf_counter()
    found = search(stitch_affinity_of(stitch_like_losses(40, 6, 1)), COSTS, budget, objective="stitch")
    print(f"40 tasks at {budget}: gap {100 * found.gap:.2f}%, {time.perf_counter() - began:.1f} s")
    assert found.method == "milp"
    assert found.gap < 0.05
