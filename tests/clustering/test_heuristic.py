"""The search for many tasks: overdrawing the budget and paying back leaves local optima."""

import numpy as np
import pytest

from branchnet.clustering import OBJECTIVES, Tree, random_tree, search
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.heuristics.heuristic import _repaired, heuristic_search
from branchnet.clustering.heuristics.local_search import apply_move, price_moves
from branchnet.clustering.search_problem import make_problem
from tests.clustering.toys import Counting, names, random_affinity, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1]


def test_rounds_that_overdraw_the_budget_reach_an_optimum_that_descents_miss() -> None:
    affinity = rsa_like_affinity(8, 3, 4)
    exact = search(affinity, COSTS, "50% params", objective="mean-pair", method="exact")
    land = make_problem(affinity, COSTS, "params", objective="mean-pair").landscape(exact.limit)
    descents = heuristic_search(land, Deadline(), seed=0, rounds=0)
    assert descents is not None
    assert land.cost(descents.labels) > exact.cost * 1.001
    found = search(affinity, COSTS, "50% params", objective="mean-pair", method="local")
    assert found.cost == pytest.approx(exact.cost, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_tree_over_the_budget_is_paid_back(name: str) -> None:
    affinity = random_affinity(7, 3, 3)
    problem = make_problem(affinity, COSTS, "params", objective=name)
    for share in (0.3, 0.5, 0.8):
        land = problem.landscape(share * problem.sizes.separate)
        for tree in (Tree.separate(names(7), 3), random_tree(names(7), 3, seed=4)):
            repaired = _repaired(land, np.array(tree.labels()))
            assert repaired is not None
            size = sum(cost * (row.max() + 1) for cost, row in zip(COSTS, repaired, strict=True))
            assert size <= share * 7 * sum(COSTS)


@pytest.mark.parametrize("name", ["mean-max", "sum-pair"])
def test_each_repair_loses_least_for_the_size_that_it_saves(name: str) -> None:
    """A budget just below a tree's size is met after one move: the one of the least rate among all."""
    problem = make_problem(random_affinity(6, 3, 3), COSTS, "params", objective=name)
    tasks = names(6)

    def cost(labels: np.ndarray) -> float:
        return problem.losses.tree_cost(Tree.from_labels(tasks, labels))

    def size(labels: np.ndarray) -> float:
        return float(sum(c * (row.max() + 1) for c, row in zip(COSTS, labels, strict=True)))

    for seed in range(6):
        labels = np.array(random_tree(tasks, 3, seed=seed).labels())
        land = problem.landscape(size(labels) - 0.01)
        moves = price_moves(land, labels)
        reached = [
            apply_move(labels, moves, s, t, cluster)
            for t, costs in enumerate(moves.costs)
            for s, cluster in np.argwhere(np.isfinite(costs))
        ]
        smaller = [other for other in reached if size(other) < size(labels) - 1e-9]
        rates = [(cost(other) - cost(labels)) / (size(labels) - size(other)) for other in smaller]
        repaired = _repaired(land, labels)
        if not rates:
            assert repaired is None
            continue
        assert repaired is not None
        assert (cost(repaired) - cost(labels)) / (size(labels) - size(repaired)) == pytest.approx(min(rates), abs=1e-9)


def test_a_start_that_is_given_is_never_made_worse() -> None:
    affinity = random_affinity(7, 3, 5)
    for name in OBJECTIVES:
        best = search(affinity, COSTS, "60% params", objective=name, method="exact")
        land = make_problem(affinity, COSTS, "params", objective=name).landscape(best.limit)
        found = heuristic_search(land, Deadline(), seed=0, rounds=2, start=np.array(best.tree.labels()))
        assert found is not None
        assert land.cost(found.labels) == pytest.approx(best.cost, abs=1e-12)
        assert land.size(found.labels) <= best.size * (1 + 1e-12)


def test_steps_are_announced_and_no_more_than_fifty() -> None:
    deadline = Counting()
    land = make_problem(rsa_like_affinity(8, 2, 0), COSTS[:2], "params").landscape(6.0)
    assert heuristic_search(land, deadline, seed=0) is not None
    assert 4 < deadline.counted == deadline.announced <= 50


def test_a_tree_within_the_budget_is_left_as_it_is_and_one_beyond_repair_is_given_up() -> None:
    problem = make_problem(random_affinity(6, 3, 0), COSTS, "params")
    labels = np.array(random_tree(names(6), 3, seed=1).labels())
    fits = problem.landscape(float(sum(c * (row.max() + 1) for c, row in zip(COSTS, labels, strict=True))))
    assert _repaired(fits, labels) is labels
    assert _repaired(problem.landscape(0.5 * sum(COSTS)), labels) is None
