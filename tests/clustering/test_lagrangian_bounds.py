"""The relaxation of sums over pairs: concave in its multipliers, never above the optimum, tighter than stages alone."""

import numpy as np
import pytest

from branchnet.clustering import Budget, search
from branchnet.clustering.bounds.lagrangian_bounds import _Multipliers, _relaxed
from branchnet.clustering.bounds.lower_bounds import rising_bounds
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.search_problem import make_problem
from tests.clustering.toys import random_affinity, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1]


def multipliers(generator: np.random.Generator, depth: int, n: int) -> _Multipliers:
    """Random ones of the kinds that they must be: symmetric, semidefinite, antisymmetric (twice), not negative."""

    def normal(stages: int) -> np.ndarray:
        return generator.normal(size=(stages, n, n))

    rows, order, shares, mutual = normal(depth), normal(depth - 1), normal(depth), normal(depth)
    return _Multipliers(
        rows + rows.transpose(0, 2, 1),
        order @ order.transpose(0, 2, 1),
        shares - shares.transpose(0, 2, 1),
        0.3 * (mutual - mutual.transpose(0, 2, 1)),
        0.3 * np.abs(normal(depth - 1)),
    )


@pytest.mark.parametrize("name", ["mean-pair", "sum-pair", "gain"])
def test_slopes_are_slopes_of_a_concave_function_below_the_optimum(name: str) -> None:
    """value(other) <= value(here) + slope * (other - here), for any two places."""
    affinity = random_affinity(5, 3, 2)
    problem = make_problem(affinity, COSTS, "params", objective=name)
    limit = 0.6 * problem.sizes.separate
    best = search(problem.losses, COSTS, Budget(limit), method="exact").cost
    widths = WidthBounds(problem.rules, problem.sizes.table, limit)
    generator = np.random.default_rng(0)
    for size in [0.001, 0.01, 0.1, 1.0] * 25:
        base = multipliers(generator, 3, 5)
        here, there = (base.moved(multipliers(generator, 3, 5), size) for _ in range(2))
        value, slope = _relaxed(problem.losses, problem.rules, widths, here, np.inf)
        other, _ = _relaxed(problem.losses, problem.rules, widths, there, np.inf)
        assert slope is not None
        gain = sum(
            float((getattr(slope, part) * (getattr(there, part) - getattr(here, part))).sum())
            for part in ("rows", "order", "shares", "mutual", "nested")
        )
        assert other <= value + gain + 1e-9
        assert max(value, other) <= best + 1e-9


@pytest.mark.parametrize("name", ["mean-pair", "sum-pair"])
def test_tying_the_stages_together_raises_the_bound(name: str) -> None:
    for seed in range(4):
        affinity = (rsa_like_affinity if seed % 2 else random_affinity)(7, 3, seed)
        best = search(affinity, COSTS, "50% params", objective=name, method="exact")
        problem = make_problem(affinity, COSTS, "params", objective=name)
        bounds = list(
            rising_bounds(problem.losses, problem.rules, problem.sizes.table, best.limit, target=best.cost, effort=60)
        )
        assert max(bounds) <= best.cost + 1e-9
        assert max(bounds) > bounds[0] + 0.1 * (best.cost - bounds[0])
