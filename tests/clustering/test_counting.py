"""Counting, enumerating and drawing trees."""

import random
from collections import Counter

import pytest
from scipy.stats import chisquare

from branchnet.clustering import Budget, count_trees, enumerate_trees, random_tree, tree_sampler, tree_size
from branchnet.errors import BudgetError, TreeError
from tests.clustering.toys import all_trees, facts_json, names

COSTS = [1.3, 2.1, 3.7]


def test_counts_are_the_published_ones() -> None:
    table = facts_json("tree_counts.json")["table_B_to_T"]
    for depth, row in table.items():
        for tasks, count in row.items():
            assert count_trees(int(tasks), int(depth)) == count


@pytest.mark.parametrize(("n", "depth"), [(1, 1), (1, 4), (3, 5), (4, 4), (5, 3), (6, 1)])
def test_enumeration_is_complete_and_lazy(n: int, depth: int) -> None:
    assert len(set(enumerate_trees(names(n), depth))) == count_trees(n, depth)
    assert next(enumerate_trees(names(60), 5)).widths == (1,) * 5


def published_counts(low: int, high: int) -> list[tuple[int, int, int]]:
    table = facts_json("tree_counts.json")["table_B_to_T"]
    return [(int(n), int(d), c) for d, row in table.items() for n, c in row.items() if low < c <= high]


@pytest.mark.parametrize(("n", "depth", "count"), published_counts(0, 2000))
def test_published_counts_are_found_by_enumeration(n: int, depth: int, count: int) -> None:
    assert len(set(enumerate_trees(names(n), depth))) == count


@pytest.mark.slow
@pytest.mark.parametrize(("n", "depth", "count"), published_counts(2000, 50_000))
def test_large_published_counts_are_found_by_enumeration(n: int, depth: int, count: int) -> None:
    assert len(set(enumerate_trees(names(n), depth))) == count


def test_refuses_nothing_to_count() -> None:
    with pytest.raises(TreeError, match="0 tasks"):
        count_trees(0, 3)


@pytest.mark.parametrize("limit", [None, 0.5, 0.7])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_random_trees_are_uniform(depth: int, limit: float | None) -> None:
    costs = COSTS[:depth]
    budget = None if limit is None else Budget(limit, relative=True)
    sampler = tree_sampler(names(4), depth, costs=None if limit is None else costs, budget=budget)
    separate = 4 * sum(costs)
    fitting = [t for t in all_trees(4, depth) if limit is None or tree_size(t, costs) <= limit * separate]
    assert sampler.count == len(fitting)
    generator = random.Random(7)
    seen = Counter(sampler.draw(generator) for _ in range(60 * len(fitting)))
    assert set(seen) == set(fitting)
    assert len(fitting) == 1 or chisquare(list(seen.values())).pvalue > 1e-4


def test_random_trees_of_many_tasks_fit_their_budget() -> None:
    costs = [1.1, 2.3, 3.7, 5.9, 7.1, 11.3]
    tree = random_tree(names(40), 6, seed=3, costs=costs, budget="40% params", shared_stages=2)
    assert tree == random_tree(names(40), 6, seed=3, costs=costs, budget="40% params", shared_stages=2)
    assert tree.widths[:2] == (1, 1)
    assert tree_size(tree, costs) <= 0.4 * 40 * sum(costs)


def test_random_trees_know_when_nothing_fits() -> None:
    with pytest.raises(BudgetError) as caught:
        random_tree(names(3), 2, seed=0, costs=[1.0, 2.0], budget=2.5)
    assert caught.value.smallest == 3.0
    with pytest.raises(BudgetError, match="needs the costs"):
        random_tree(names(3), 2, seed=0, budget=2.5)


def test_vectors_of_widths_beyond_two_million_a_half_are_refused() -> None:
    """82 tasks, four stages: C(85, 4) = 2,024,785 vectors; one task fewer would be 1,929,501."""
    with pytest.raises(TreeError, match="82 tasks with 7 stages have too many"):
        tree_sampler(names(82), 7)
