import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import branchnet
from branchnet import Affinity, Budget, Tree, clustering_cost, enumerate_trees, pareto_front, random_tree, search
from branchnet.clustering import tree_size
from branchnet.clustering.budgets.budget import as_budget
from branchnet.errors import BudgetError

TASKS = tuple("abcd")
# Parameters lie at the end, multiply-adds at the start, as in convolutional networks.
COSTS = {"params": [1.0, 2.0, 6.0], "flops": [8.0, 3.0, 1.0]}
OBJECTIVES = ("mean-pair", "mean-max", "diameter-sum", "medoid")


def affinity_of(seed, tasks=TASKS, depth=3, directed=False):
    # Stitching losses below 0.9: pairs near a constant answer are avoided at any cost, which is another objective.
    values = np.random.default_rng(seed).uniform(0.2 if directed else 0, 1, (depth, len(tasks), len(tasks)))
    values = values if directed else (values + values.transpose(0, 2, 1)) / 2
    values[:, range(len(tasks)), range(len(tasks))] = 1
    return Affinity(tasks, [f"layer{d}" for d in range(depth)], values, measure="stitch" if directed else "given",
                    directed=directed)  # fmt: skip


def share(tree, unit):
    sizes = [tree_size(one, COSTS, unit=unit) for one in (tree, Tree.separate(tree.tasks, tree.depth))]
    return sizes[0] / sizes[1]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(OBJECTIVES), st.floats(0.3, 1), st.floats(0.3, 1))
@example(0, "mean-pair", 0.5625, 0.3125)  # no beam under one budget fits both
def test_the_best_tree_within_both_is_that_of_brute_force(seed, objective, params, flops):
    affinity = affinity_of(seed)
    fitting = [
        clustering_cost(tree, affinity, objective=objective)
        for tree in enumerate_trees(TASKS, 3)
        if share(tree, "params") <= params + 1e-9 and share(tree, "flops") <= flops + 1e-9
    ]
    budget = [Budget(params, "params", relative=True), Budget(flops, "flops", relative=True)]
    found = search(affinity, COSTS, budget, objective=objective)
    assert found.proven and found.cost == pytest.approx(min(fitting), abs=1e-9)
    assert [one.unit for one in found.resources] == ["params", "flops"]
    for one in found.resources:
        assert one.size == pytest.approx(tree_size(found.tree, COSTS, unit=one.unit)) and one.size <= one.limit
    for method in ("local", "beam"):
        other = search(affinity, COSTS, budget, objective=objective, method=method)
        assert share(other.tree, "params") <= params + 1e-9 and share(other.tree, "flops") <= flops + 1e-9
        assert other.lower_bound <= min(fitting) + 1e-9 <= other.cost + 2e-9


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.floats(0.35, 1), st.floats(0.35, 1))
def test_stitching_losses_under_both(seed, params, flops):
    affinity = affinity_of(seed, directed=True)
    fitting = [
        clustering_cost(tree, affinity, objective="stitch")
        for tree in enumerate_trees(TASKS, 3)
        if share(tree, "params") <= params + 1e-9 and share(tree, "flops") <= flops + 1e-9
    ]
    budget = f"{100 * params!r}% params, {100 * flops!r}% flops"
    exact = search(affinity, COSTS, budget, objective="stitch")
    searched = search(affinity, COSTS, budget, objective="stitch", method="milp")
    assert exact.cost == pytest.approx(min(fitting), abs=1e-9)
    assert searched.lower_bound <= min(fitting) + 1e-9 <= searched.cost + 2e-9
    for found in (exact, searched):
        assert all(one.size <= one.limit * (1 + 1e-9) for one in found.resources)


def test_one_budget_that_does_not_bind_changes_nothing():
    affinity = affinity_of(3)
    alone = search(affinity, COSTS["params"], "60% params")
    both = search(affinity, COSTS, "60% params, 100% flops")
    assert (both.tree, both.cost, both.size) == (alone.tree, alone.cost, alone.size)


def test_many_tasks_meet_both_within_a_bound():
    tasks = [f"t{k}" for k in range(16)]
    generator = np.random.default_rng(0)
    points = generator.normal(size=(4, 3))[np.arange(16) % 4] + 0.3 * generator.normal(size=(16, 3))
    unlike = np.linalg.norm(points[:, None] - points[None], axis=2)
    unlike /= unlike.max()
    affinity = Affinity(tasks, ["a", "b", "c"], np.stack([1 - 0.2 * unlike, 1 - 0.5 * unlike, 1 - unlike]))
    found = search(affinity, COSTS, "50% params, 40% flops")
    assert found.method == "local" and all(one.size <= one.limit for one in found.resources)
    for budget in ("50% params", "40% flops"):
        assert search(affinity, COSTS, budget).lower_bound <= found.cost
    assert found.gap < 0.2


def test_the_front_over_both_units_is_that_of_brute_force():
    affinity = affinity_of(5, TASKS[:3])
    trees = list(enumerate_trees(TASKS[:3], 3))
    points = {
        tree: (
            tree_size(tree, COSTS, unit="params"),
            tree_size(tree, COSTS, unit="flops"),
            clustering_cost(tree, affinity, objective="mean-pair"),
        )
        for tree in trees
    }
    best = {
        point
        for point in points.values()
        if not any(other != point and all(np.array(other) <= np.array(point) + 1e-12) for other in points.values())
    }
    front = pareto_front(affinity, COSTS, unit=("params", "flops"), objective="mean-pair")
    found = {(one.size, one.also[0].size, one.cost) for one in front}
    assert np.allclose(sorted(found), sorted(best))
    assert all(math.isinf(one.also[0].limit) and one.budget is None for one in front)


def test_random_trees_meet_both():
    trees = [random_tree(TASKS, 3, seed=seed, costs=COSTS, budget="70% params, 60% flops") for seed in range(50)]
    assert all(share(tree, "params") <= 0.7 and share(tree, "flops") <= 0.6 for tree in trees)
    assert len(set(trees)) > 5


@pytest.mark.parametrize("method", ["exact", "local"])
@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("10% params, 90% flops", "fits the budget of 10% params .*smallest feasible one is 9 params"),
        ("90% params, 10% flops", "fits the budget of 10% flops .*smallest feasible one is 12 flops"),
    ],
)
def test_the_budget_that_binds_is_named(budget, message, method):
    with pytest.raises(BudgetError, match=message):
        search(affinity_of(0), COSTS, budget, method=method)


def test_budgets_that_only_do_not_fit_together_are_told():
    # A copy more of the last stage is faster, measured so, and needs more parameters.
    costs = {"params": [[0.0, 1, 2]], "latency": [[0.0, 9, 5]]}
    with pytest.raises(BudgetError, match=r"1 params, 6 ms together.*1 params, 5 latency, not all of one tree"):
        search(affinity_of(0, TASKS[:2], 1), costs, "1 params, 6 ms")


def test_budgets_are_written_and_read():
    both = Budget.parse("25e6 params, 4 ms")
    assert [str(one) for one in both.each] == ["2.5e+07 params", "4 ms"] and Budget.parse(str(both)) == both
    latency = Budget(5.0, "latency")
    assert as_budget(["60% params", latency]) == Budget(0.6, "params", relative=True, also=(latency,))
    for text in ("60% params, 20% params", "60% params,", "60% params, 3 apples"):
        with pytest.raises(BudgetError):
            Budget.parse(text)
    with pytest.raises(BudgetError, match="costs are given in params, the budget in flops"):
        search(affinity_of(0), {"params": COSTS["params"]}, "60% params, 50% flops")


def test_several_resources_come_from_staged_networks():
    torch = pytest.importorskip("torch")
    networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=4).eval() for task in "abc"}
    staged = branchnet.split_all(networks, torch.zeros(1, 3, 32, 32))
    affinity = affinity_of(1, tuple("abc"), len(staged["a"].stages))
    affinity = Affinity(affinity.tasks, staged["a"].locations, affinity.values)
    found = search(affinity, staged, "80% params, 90% flops")
    costs, heads = staged["a"].costs, {task: network.head_cost for task, network in staged.items()}
    for one in found.resources:
        assert one.size == pytest.approx(tree_size(found.tree, costs, head_costs=heads, unit=one.unit))
    assert found.budget is not None and str(found.budget).count(",") == 1


def test_a_front_over_two_units_is_drawn():
    front = pareto_front(affinity_of(2), COSTS, unit=("params", "flops"), objective="mean-pair")
    chosen = search(affinity_of(2), COSTS, "70% params, 60% flops", objective="mean-pair")
    figure = branchnet.plot(front, chosen=chosen)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == (
        "parameters", "multiply-adds", "clustering cost (mean-pair)",
    )  # fmt: skip
    assert len(axes.collections[0].get_offsets()) == len(front)
    assert axes.lines[0].get_xdata()[0] == chosen.limit
    with pytest.raises(branchnet.BranchnetError, match="the same in all results"):
        branchnet.plot([*front, search(affinity_of(2), COSTS["params"], "70% params")])
