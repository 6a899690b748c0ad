"""Tasks that leave the trunk early: searches and bounds against enumeration of the trees in which they are alone."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchnet
from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Constraints, Tree, clustering_cost, pareto_front, search, tree_size
from branchnet.clustering.trees.sampling import tree_sampler
from branchnet.errors import AffinityError, BudgetError, TreeError
from branchnet.stages.costs import StageCost, StageCosts
from tests.clustering.stitch_toys import kept_assignments, random_losses, stitch_affinity_of
from tests.clustering.toys import affinities, all_trees, names, random_affinity, slow_stage_cost

DEPTHS = st.lists(st.integers(1, 3), min_size=5, max_size=5)
NAMES = st.sampled_from(sorted(OBJECTIVES))


def early(affinity: Affinity, drawn: list[int]) -> dict[str, int]:
    """Depths of some tasks; the last one always passes all stages."""
    depth = len(affinity.locations)
    return {task: own for task, own in zip(affinity.tasks[:-1], drawn, strict=False) if own < depth}


def alone_where_left(tree: Tree, depths: dict[str, int]) -> bool:
    left = [[c for c in stage if any(depths.get(t, 9) <= d for t in c)] for d, stage in enumerate(tree.partitions)]
    return all(len(cluster) == 1 for stage in left for cluster in stage)


def nodes(tree: Tree, depths: dict[str, int]) -> list[int]:
    """Clusters with a task that has not left."""
    return [sum(any(depths.get(t, 9) > d for t in c) for c in stage) for d, stage in enumerate(tree.partitions)]


def slow_cost(name: str, tree: Tree, affinity: Affinity, depths: dict[str, int]) -> float:
    values, n = affinity.values, len(affinity.tasks)
    own = [depths.get(task, 9) for task in affinity.tasks]
    pairs = [values[d, i, j] for d in range(len(values)) for j in range(n) for i in range(j) if d < min(own[i], own[j])]
    centre = sum(pairs) / len(pairs)
    return sum(
        slow_stage_cost(name, 1 - values[d], centre - values[d], [[int(t[1:]) for t in c] for c in stage])
        for d, stage in enumerate(tree.partitions)
    )


@settings(max_examples=40, deadline=None)
@given(affinities(max_tasks=4, max_depth=3), DEPTHS, NAMES, st.floats(0.2, 1.1), st.integers(0, 999))
def test_the_search_finds_the_best_of_all_trees_in_which_such_tasks_are_alone(
    affinity: Affinity, drawn: list[int], name: str, share: float, seed: int
) -> None:
    depths = early(affinity, drawn)
    costs = np.random.default_rng(seed).integers(1, 5, len(affinity.locations)).astype(float).tolist()
    heads = dict.fromkeys(affinity.tasks, 0.5)
    trees = [t for t in all_trees(len(affinity.tasks), len(costs)) if alone_where_left(t, depths)]
    sizes = [sum(c * k for c, k in zip(costs, nodes(t, depths), strict=True)) + 0.5 * len(heads) for t in trees]
    losses = [slow_cost(name, t, affinity, depths) for t in trees]
    limit = share * max(sizes)  # separate networks are the largest tree
    known = replace(affinity, depths=depths)
    fitting = [k for k, size in enumerate(sizes) if size <= limit * (1 + 1e-12)]
    if not fitting:
        with pytest.raises(BudgetError) as raised:
            search(known, costs, f"{100 * share}% params", head_costs=heads, objective=name)
        assert math.isclose(raised.value.smallest, min(sizes))
        return
    best = min(losses[k] for k in fitting)
    for method in ("exact", "local", "beam"):
        found = search(known, costs, f"{100 * share}% params", head_costs=heads, objective=name, method=method)
        number = trees.index(Tree(found.tree.tasks, found.tree.partitions))
        assert found.tree.depths == depths and found.tree.copies == tuple(nodes(trees[number], depths))
        assert math.isclose(found.size, sizes[number]) and found.size <= limit * (1 + 1e-12)
        assert math.isclose(found.cost, losses[number], abs_tol=1e-9)
        assert found.lower_bound <= best + 1e-9
        assert math.isclose(tree_size(found.tree, costs, head_costs=heads), found.size)
        if method == "exact":
            assert math.isclose(found.cost, best, abs_tol=1e-8) and found.proven
            assert math.isclose(found.size, min(sizes[k] for k in fitting if losses[k] <= best + 1e-9))


@settings(max_examples=20, deadline=None)
@given(affinities(max_tasks=4, max_depth=3), DEPTHS, NAMES, st.integers(0, 999))
def test_the_front_is_that_of_all_trees_in_which_such_tasks_are_alone(
    affinity: Affinity, drawn: list[int], name: str, seed: int
) -> None:
    depths = early(affinity, drawn)
    costs = np.random.default_rng(seed).uniform(1, 5, len(affinity.locations)).tolist()
    trees = [t for t in all_trees(len(affinity.tasks), len(costs)) if alone_where_left(t, depths)]
    points = sorted(
        (sum(c * k for c, k in zip(costs, nodes(t, depths), strict=True)), slow_cost(name, t, affinity, depths))
        for t in trees
    )
    wanted: list[tuple[float, float]] = []
    for size, cost in points:
        if not wanted or cost < wanted[-1][1] - 1e-8:
            wanted.append((size, cost))
    found = pareto_front(affinity, costs, objective=name, constraints=Constraints(depths=depths))
    np.testing.assert_allclose([(p.size, p.cost) for p in found], wanted, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(2, 3), DEPTHS, st.floats(0.2, 1.2), st.integers(0, 2**32 - 1))
def test_stitched_trees_are_the_best_of_all_trees_and_donors(
    n: int, depth: int, drawn: list[int], share: float, seed: int
) -> None:
    losses = random_losses(n, depth, seed, high=1.2)
    affinity = stitch_affinity_of(losses, measure="given")
    depths = early(affinity, drawn)
    generator = np.random.default_rng(seed)
    costs, stitch = generator.uniform(2, 5, depth).tolist(), generator.uniform(0, 1, depth).tolist()
    best: dict[Tree, float] = {}
    for tree in all_trees(n, depth):
        if alone_where_left(tree, depths):
            sums = [math.fsum(losses[c] for c in changes) for _, changes in kept_assignments(tree)]
            best[tree] = min(sums)
    sizes = {tree: _stitched_size(tree, depths, costs, stitch) for tree in best}
    limit = share * max(sizes.values())
    fitting = [tree for tree in best if sizes[tree] <= limit]
    known = replace(affinity, depths=depths)
    asked = {"objective": "stitch", "stitch_sizes": stitch}
    if not fitting:
        with pytest.raises(BudgetError):
            search(known, costs, limit, **asked)
        return
    for method in ("exact", "local"):
        found = search(known, costs, limit, method=method, **asked)
        plain = Tree(found.tree.tasks, found.tree.partitions)
        assert math.isclose(found.cost, best[plain], abs_tol=1e-9) and math.isclose(found.size, sizes[plain])
        assert found.tree.depths == depths
        least = min(best[tree] for tree in fitting)
        assert found.lower_bound <= least + 1e-9
        if method == "exact":
            assert math.isclose(found.cost, least, abs_tol=1e-9)


def _stitched_size(tree: Tree, depths: dict[str, int], costs: list[float], stitch: list[float]) -> float:
    """Nodes, and below every node a stitch for each child or head but one."""
    total = 0.0
    for d, stage in enumerate(tree.partitions):
        for cluster in stage:
            passing = [t for t in cluster if depths.get(t, 9) > d]
            if passing:
                after = {tree.cluster_of(t, d + 1) for t in passing if d + 1 < tree.depth and depths.get(t, 9) > d + 1}
                heads = [t for t in passing if d + 1 == min(depths.get(t, 9), tree.depth)]
                total += costs[d] + stitch[d] * (len(after) + len(heads) - 1)
    return total


def test_random_trees_are_drawn_evenly_among_those_in_which_such_tasks_are_alone() -> None:
    depths = {"t0": 1, "t2": 2}
    costs = StageCosts(tuple(StageCost(f"s{d}", cost, 1) for d, cost in enumerate((4, 2, 1))), depths=depths)
    trees = [t for t in all_trees(4, 3) if alone_where_left(t, depths)]
    sizes = [sum(c * k for c, k in zip((4, 2, 1), nodes(t, depths), strict=True)) for t in trees]
    fitting = [t for t, size in zip(trees, sizes, strict=True) if size <= 0.7 * max(sizes)]
    sampler = tree_sampler(names(4), 3, costs=costs, budget="70% params")
    assert sampler.count == len(fitting)
    generator = random.Random(0)
    drawn = Counter(sampler.draw(generator) for _ in range(100 * len(fitting)))
    assert set(drawn) == {Tree(t.tasks, t.partitions, depths) for t in fitting}
    assert min(drawn.values()) > 60 and max(drawn.values()) < 140


def test_many_tasks_are_searched_with_bounds() -> None:
    affinity = random_affinity(14, 4, 0)
    depths = {"t1": 1, "t5": 2, "t9": 3}
    found = search(replace(affinity, depths=depths), [4.0, 3.0, 2.0, 1.0], "50% params")
    assert alone_where_left(found.tree, depths) and found.tree.depths == depths
    assert 0 < found.lower_bound <= found.cost
    separate = 14 * 10 - (3 + 2 + 1) - (2 + 1) - 1
    assert found.size <= separate / 2 == found.limit


def test_other_constraints_hold_as_far_as_such_tasks_go() -> None:
    affinity = replace(random_affinity(4, 3, 1), depths={"t0": 1})
    shared = search(affinity, [1.0] * 3, "100% params", shared_stages=3)
    assert shared.tree == Tree.shared(affinity.tasks, 3, {"t0": 1}) and shared.size == 3
    few = search(affinity, [1.0] * 3, "100% params", constraints=Constraints(max_clusters=1))
    assert few.tree == shared.tree
    together = Constraints(together=[["t0", "t1"]])
    assert search(affinity, [1.0] * 3, "100% params", constraints=together).tree.shared_depth("t0", "t1") == 1


def test_what_is_said_of_depths_must_agree() -> None:
    affinity = replace(random_affinity(3, 3, 1), depths={"t0": 1})
    with pytest.raises(TreeError, match=r"'t0': 2.*in the constraints, at .*'t0': 1.*in the affinity"):
        search(affinity, [1.0] * 3, "100% params", constraints=Constraints(depths={"t0": 2}))
    with pytest.raises(AffinityError, match=r"2 for 't7'.*from 1 to 3"):
        search(random_affinity(3, 3, 1), [1.0] * 3, "90% params", constraints=Constraints(depths={"t7": 2}))
    with pytest.raises(AffinityError, match=r"0 for 't0'.*from 1 to 3"):
        replace(affinity, depths={"t0": 0})


def test_affinities_say_nothing_beyond_and_keep_depths_in_files(tmp_path) -> None:
    affinity = replace(random_affinity(3, 2, 1), depths={"t0": 1, "t1": 2})
    assert affinity.depths == {"t0": 1}
    assert affinity.values[1, 0].tolist() == [1, 0, 0] and affinity.values[1, 1, 2] != 0
    affinity.save(tmp_path / "a.npz")
    assert Affinity.load(tmp_path / "a.npz").depths == {"t0": 1}
    cost = clustering_cost(Tree(names(3), [[names(3)], [["t0"], ["t1", "t2"]]]), affinity)
    assert math.isclose(cost, 1 - affinity.values[0][np.triu_indices(3, 1)].min() + (1 - affinity.values[1, 1, 2]) / 2)


def test_trees_say_where_tasks_leave() -> None:
    tree = Tree(["a", "b", "c"], [[["a", "b", "c"]], [["a", "b"], ["c"]]], {"c": 1})
    assert tree.widths == (1, 2) and tree.copies == (1, 1) and tree.depth_of("c") == 1
    assert tree == Tree.shared(["a", "b", "c"], 2, {"c": 1}) != Tree(tree.tasks, tree.partitions)
    assert str(tree).splitlines() == [
        "3 tasks, 2 stages, 2 nodes",
        "stage 0: a, b, c",
        "├── stage 1: a, b",
        "└── c leaves after stage 0",
    ]
    assert set(tree.to_networkx()) == {(0, 0), (1, 0)}
    with pytest.raises(TreeError, match="stage 1 joins 'a', 'b', and 'b' leaves the trunk before it"):
        Tree(tree.tasks, tree.partitions, {"b": 1})
    with pytest.raises(TreeError, match="the depth of 'c' is 0; expected a number of stages from 1 to 2"):
        Tree(tree.tasks, tree.partitions, {"c": 0})
    with pytest.raises(TreeError, match="unknown task 'd'"):
        Tree(tree.tasks, tree.partitions, {"d": 1})
    with pytest.raises(TreeError, match="stage 1 joins"):
        branchnet.clustering.tree_size(
            Tree.shared(["a", "b"], 2), StageCosts((StageCost("x", 1, 1), StageCost("y", 1, 1)), depths={"a": 1})
        )
