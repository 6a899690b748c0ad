"""`medoid` on directed losses, sizes with stitches under every objective, and donors that choose themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.builder import choose_donors
from branchnet.clustering import (
    OBJECTIVES,
    Budget,
    Tree,
    clustering_cost,
    compare_sharing,
    pareto_front,
    search,
    tree_size,
)
from branchnet.clustering.bounds.lower_bounds import lower_bound
from branchnet.clustering.search_problem import Problem, make_problem
from branchnet.errors import BudgetError, TreeError
from tests.clustering.stitch_toys import (
    brute_stitch_sizes,
    kept_assignments,
    path_changes,
    random_losses,
    stitch_affinity_of,
    stitch_like_losses,
    stitch_losses_drawn,
)
from tests.clustering.toys import affinities, all_trees, brute_costs, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1, 14.9]
FEW = settings(max_examples=40, deadline=None)


def brute_medoid(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For every tree the fewest poor pairs and the least loss with so few, over one donor for each cluster, (T, 2)."""
    depth, n = losses.shape[:2]
    rows = []
    for tree in all_trees(n, depth):
        count, cost = 0, 0.0
        for d, stage in enumerate(tree.partitions):
            for cluster in stage:
                members = [int(task[1:]) for task in cluster]
                options = []
                for donor in members:
                    served = [(losses[d, donor, t], weights[t]) for t in members if t != donor]
                    options.append((sum(x >= 0.9 and w > 0 for x, w in served), sum(x * w for x, w in served)))
                poor, loss = min(options)
                count, cost = count + poor, cost + loss
        rows.append((count, cost))
    return np.array(rows, dtype=float)


@FEW
@given(stitch_losses_drawn(high=1.2), st.floats(0, 1), st.booleans(), st.booleans())
def test_directed_medoid_by_enumeration(losses: np.ndarray, share: float, stitch: bool, weighted: bool) -> None:
    """With the measure `stitch` poor pairs are avoided; with another one only the loss counts."""
    affinity = stitch_affinity_of(losses, "stitch" if stitch else "lookahead")
    depth, n = losses.shape[:2]
    weights = np.linspace(0.0, 2.0, n) if weighted else np.ones(n)
    named = dict(zip(affinity.tasks, weights.tolist(), strict=True)) if weighted else None
    values, sizes = brute_medoid(1.0 - affinity.values, weights), brute_stitch_sizes(n, COSTS[:depth], None)
    limit = float(np.quantile(sizes, share))
    fitting = sizes <= limit * (1 + 1e-12)
    if not stitch:
        plain = [clustering_cost(t, affinity, objective="medoid", task_weights=named) for t in all_trees(n, depth)]
        values = np.stack([np.zeros(len(plain)), plain], axis=1)
    fewest = values[fitting, 0].min()
    least = values[fitting & (values[:, 0] == fewest), 1].min()
    for method in ("exact", "local"):
        found = search(affinity, COSTS[:depth], Budget(limit), objective="medoid", method=method, task_weights=named)
        as_few = fitting & (values[:, 0] <= len(found.forced))
        assert found.lower_bound <= values[as_few, 1].min() + 1e-9
        if method == "exact" or found.proven:
            assert (len(found.forced), found.cost) == (fewest, pytest.approx(least, abs=1e-9))
        assert all(pair.loss >= 0.9 for pair in found.forced)
    assert search(affinity, COSTS[:depth], Budget(limit), objective="medoid", task_weights=named).proven


@FEW
@given(stitch_losses_drawn())
def test_the_cost_of_a_cluster_is_that_of_its_best_donor(losses: np.ndarray) -> None:
    affinity = stitch_affinity_of(losses)
    depth, n = losses.shape[:2]
    weights = np.arange(1.0, n + 1)
    named = dict(zip(affinity.tasks, weights.tolist(), strict=True))
    expected = brute_medoid(1.0 - affinity.values, weights)[:, 1]
    found = [clustering_cost(t, affinity, objective="medoid", task_weights=named) for t in all_trees(n, depth)]
    assert found == pytest.approx(expected.tolist(), abs=1e-12)


@FEW
@given(stitch_losses_drawn(high=1.2), st.floats(0.01, 1))
def test_bounds_hold_for_directed_losses(losses: np.ndarray, share: float) -> None:
    affinity = stitch_affinity_of(losses, "lookahead")
    depth, n = losses.shape[:2]
    sizes = brute_stitch_sizes(n, COSTS[:depth], None)
    limit = float(np.quantile(sizes, share))
    problem = make_problem(affinity, COSTS[:depth], "params", objective="medoid")
    assert isinstance(problem, Problem)
    bound = lower_bound(problem.losses, problem.rules, problem.sizes.table, limit)
    best = min(
        clustering_cost(tree, affinity, objective="medoid")
        for tree, size in zip(all_trees(n, depth), sizes, strict=True)
        if size <= limit * (1 + 1e-12)
    )
    assert bound <= best + 1e-12


def test_many_tasks_by_directed_losses() -> None:
    """The local search and the beam take them; transposed, they are another problem."""
    losses = stitch_like_losses(14, 2, 1)
    costs = []
    for one in (losses, losses.transpose(0, 2, 1)):
        affinity = stitch_affinity_of(one)
        found = search(affinity, COSTS[:2], "40% params", objective="medoid")
        beam = search(affinity, COSTS[:2], "40% params", objective="medoid", method="beam")
        assert found.method == "local"
        assert 0 < found.lower_bound <= found.cost
        assert (len(found.forced), found.cost) <= (len(beam.forced), beam.cost)
        costs.append(found.cost)
    assert costs[0] != pytest.approx(costs[1], rel=1e-3)


def test_groups_are_compared_without_surcharges() -> None:
    affinity = stitch_affinity_of(random_losses(3, 2, 0, high=1.2))
    points = compare_sharing(affinity, [1.0, 2.0], objective="medoid").groups
    assert all(
        point.cost == pytest.approx(clustering_cost(point.tree, affinity, objective="medoid")) for point in points
    )


@settings(max_examples=20, deadline=None)
@given(affinities(max_tasks=4, max_depth=3), st.sampled_from(sorted(OBJECTIVES)), st.integers(0, 999), st.floats(0, 1))
def test_stitches_are_counted_under_every_objective(affinity: Affinity, name: str, seed: int, share: float) -> None:
    depth, n = affinity.values.shape[:2]
    generator = np.random.default_rng(seed)
    costs = generator.integers(1, 5, depth).astype(float).tolist()
    stitches = generator.integers(0, 20, depth).astype(float).tolist()
    sizes, values = brute_stitch_sizes(n, costs, stitches), brute_costs(affinity, name)
    limit = float(np.quantile(sizes, share))
    best = values[sizes <= limit].min()
    found = search(affinity, costs, Budget(limit), objective=name, stitch_sizes={"params": stitches})
    assert found.cost == pytest.approx(best, abs=1e-9)
    assert found.size == sizes[all_trees(n, depth).index(found.tree)]
    local = search(affinity, costs, Budget(limit), objective=name, stitch_sizes=stitches, method="local")
    assert local.size == sizes[all_trees(n, depth).index(local.tree)] <= limit
    assert local.lower_bound <= best + 1e-9
    assert local.cost >= best - 1e-9
    with pytest.raises(BudgetError) as caught:
        search(affinity, costs, Budget(sizes.min() / 2), objective=name, stitch_sizes=stitches, method="local")
    assert caught.value.smallest == sizes.min()


def test_large_stitches_make_early_branches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchnet.clustering.heuristics.bounded_search.FRONT_BUDGETS", 4)
    affinity, stitches = rsa_like_affinity(3, 2, 0), [100.0, 0.0]
    front = pareto_front(affinity, [1.0, 1.0], stitch_sizes=stitches)
    assert front[0].tree.widths == (1, 1)
    assert tree_size(Tree.separate(affinity.tasks, 2), [1.0, 1.0], stitch_sizes=stitches) == 6.0
    assert max(point.size for point in front) == 6.0
    many = pareto_front(affinity, [1.0, 1.0], objective="medoid", stitch_sizes=stitches, method="local")
    assert many[-1].cost == 0.0


def test_stitch_sizes_that_do_not_fit_are_refused() -> None:
    affinity = rsa_like_affinity(3, 2, 0)
    for sizes in ([1.0], [1.0, -1.0], [1.0, math.inf]):
        with pytest.raises(BudgetError, match="expected 2 finite numbers"):
            search(affinity, [1.0, 1.0], 6, stitch_sizes=sizes)
    with pytest.raises(BudgetError, match="expected 'params'"):
        search(affinity, [1.0, 1.0], 6, stitch_sizes={"flops": [1.0, 1.0]})


@FEW
@given(stitch_losses_drawn(), st.integers(0, 10_000), st.booleans())
def test_donors_of_least_loss_by_enumeration(losses: np.ndarray, pick: int, prefer: bool) -> None:
    affinity = stitch_affinity_of(losses)
    trees = all_trees(losses.shape[1], losses.shape[0])
    tree, loss = trees[pick % len(trees)], 1.0 - affinity.values
    preferred = affinity.tasks[pick % len(affinity.tasks)] if prefer else None
    named = choose_donors(tree, affinity, preferred=preferred)
    donors = tuple(tuple(affinity.tasks.index(a) for a in stage) for stage in named)
    options = {
        assignment: sum(loss[change] for change in changes)
        for assignment, changes in kept_assignments(tree)
        if preferred is None or _prefers(tree, assignment, preferred)
    }
    assert donors in options
    assert sum(loss[change] for change in path_changes(tree, donors)) == pytest.approx(min(options.values()), abs=1e-12)


def _prefers(tree: Tree, donors: tuple[tuple[int, ...], ...], preferred: str) -> bool:
    return all(
        tree.tasks[donor] == preferred
        for stage, row in zip(tree.partitions, donors, strict=True)
        for cluster, donor in zip(stage, row, strict=True)
        if preferred in cluster
    )


def test_donors_do_not_depend_on_the_order_of_the_tasks_of_a_tree() -> None:
    affinity = stitch_affinity_of(random_losses(4, 3, 7))
    for tree in all_trees(4, 3)[::20]:
        other = Tree(tree.tasks[::-1], tree.partitions)
        first, second = choose_donors(tree, affinity), choose_donors(other, affinity)
        assert [set(stage) for stage in first] == [set(stage) for stage in second]


def test_only_stitching_losses_choose_donors_by_the_last_change() -> None:
    losses = np.ones((2, 3, 3))
    losses[1, 2] = 0.0
    losses[0, 1, :] = 0.5
    tree = Tree.shared(["t0", "t1", "t2"], 2)
    assert choose_donors(tree, stitch_affinity_of(losses)) == (("t2",), ("t2",))
    assert choose_donors(tree, stitch_affinity_of(losses, "lookahead")) == (("t1",), ("t1",))
    with pytest.raises(TreeError, match="the tree has 3 stages; expected 2"):
        choose_donors(Tree.shared(["t0", "t1", "t2"], 3), stitch_affinity_of(losses))
