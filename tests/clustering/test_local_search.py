"""Moves and swaps of the local search, against trees that are built and priced one by one."""

from itertools import combinations

import numpy as np
import pytest

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Constraints, Tree, random_tree
from branchnet.clustering.heuristics.initial_trees import smallest_tree
from branchnet.clustering.heuristics.local_search import apply_move, best_swap, descend, price_moves, renumber
from branchnet.clustering.search_problem import Problem, make_problem
from tests.clustering.toys import as_affinity, names, random_affinity, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1]
RULES = [
    Constraints(),
    Constraints(apart=[["t0", "t3"], ["t1", "t2"]]),
    Constraints(together=[["t0", "t4", "t5"]], max_clusters=5),
    Constraints(shared_stages=1, separate_stages=1),
]


def allowed(problem: Problem, labels: np.ndarray) -> bool:
    """Whether every stage keeps to the rules, pair by pair."""
    rules = problem.rules
    return all(
        row.max() + 1 <= rules.max_width[d]
        and all(row[i] == row[j] or not rules.together[d, i, j] for i, j in combinations(range(len(row)), 2))
        and all(row[i] != row[j] or not rules.apart[d, i, j] for i, j in combinations(range(len(row)), 2))
        for d, row in enumerate(labels)
    )


def trees(problem: Problem, n: int, count: int) -> list[np.ndarray]:
    """Random trees that the rules allow, and the smallest."""
    drawn = (np.array(random_tree(names(n), 3, seed=seed).labels()) for seed in range(20 * count))
    return [smallest_tree(problem.rules, problem.sizes.table), *(t for t in drawn if allowed(problem, t))][:count]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rules", RULES)
def test_the_best_swap_is_the_best_of_all_exchanges_that_the_rules_allow(name: str, rules: Constraints) -> None:
    _check_best_swaps(random_affinity(7, 3, 8), name, rules)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_best_swap_where_affinities_are_above_one(name: str) -> None:
    """Sharing may gain then: the largest loss of two tasks is negative, that of one is 0."""
    for seed in range(3):
        affinity = as_affinity(random_affinity(7, 3, seed).values + 1.2 * (1 - np.eye(7)))
        assert affinity.values.max() > 1.5
        _check_best_swaps(affinity, name, Constraints())


def _check_best_swaps(affinity: Affinity, name: str, rules: Constraints) -> None:
    problem = make_problem(affinity, COSTS, "params", objective=name, constraints=rules)
    land = problem.landscape(1e9)
    bound = {task for group in rules.together for task in group}

    def cost(labels: np.ndarray) -> float:
        return problem.losses.tree_cost(Tree.from_labels(affinity.tasks, labels))

    for labels in trees(problem, 7, 8):
        swapped = []
        for i, j in combinations(range(7), 2):
            other = labels.copy()
            other[:, [i, j]] = labels[:, [j, i]]
            other = renumber(other)
            if allowed(problem, other) and not bound & {f"t{i}", f"t{j}"}:
                swapped.append(cost(other))
        best = min(swapped, default=np.inf)
        found = best_swap(land, labels)
        if best >= cost(labels) - 1e-9:
            assert found is None
        else:
            assert found is not None
            assert cost(found) == pytest.approx(best, abs=1e-12)
            assert allowed(problem, found)


@pytest.mark.parametrize("name", ["mean-max", "mean-pair"])
@pytest.mark.parametrize("rules", RULES)
def test_moves_keep_to_the_rules_and_reach_what_they_allow(name: str, rules: Constraints) -> None:
    """Every move that has a price is allowed; every task that may be alone at all stages finds the move there."""
    affinity = rsa_like_affinity(7, 3, 3)
    problem = make_problem(affinity, COSTS, "params", objective=name, constraints=rules)
    land = problem.landscape(1e9)
    for labels in trees(problem, 7, 4):
        moves = price_moves(land, labels)
        for t, costs in enumerate(moves.costs):
            for s, cluster in np.argwhere(np.isfinite(costs)):
                moved = apply_move(labels, moves, s, t, cluster)
                assert allowed(problem, moved)
                expected = problem.losses.tree_cost(Tree.from_labels(affinity.tasks, moved))
                assert costs[s, cluster] == pytest.approx(expected, abs=1e-12)
        for task in range(7):
            alone = labels.copy()
            alone[:, task] = 7
            s = next(s for s, members in enumerate(moves.sets) if members.sum() == 1 and members[task])
            assert np.isfinite(moves.costs[0][s, 0]) == (
                allowed(problem, renumber(alone)) or bool((labels == labels[:, [task]]).sum() == 3)
            )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_descent_ends_where_no_move_and_no_swap_helps(name: str) -> None:
    affinity = random_affinity(7, 3, 1)
    problem = make_problem(affinity, COSTS, "params", objective=name)
    land = problem.landscape(0.6 * problem.sizes.separate)
    labels, cost = descend(land, smallest_tree(problem.rules, problem.sizes.table))
    assert cost == pytest.approx(problem.losses.tree_cost(Tree.from_labels(affinity.tasks, labels)), abs=1e-12)
    assert land.size(labels) <= land.limit
    moves = price_moves(land, labels)
    fitting = [costs[sizes <= land.limit] for costs, sizes in zip(moves.costs, moves.sizes, strict=True)]
    assert min(map(np.min, filter(len, fitting))) >= cost - 1e-9
    assert best_swap(land, labels) is None
