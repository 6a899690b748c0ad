"""The relaxation of `medoid` as facilities of several levels: never above the optimum, concave, near it."""

import numpy as np
import pytest

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import Budget, Constraints, search
from branchnet.clustering.bounds.lower_bounds import rising_bounds
from branchnet.clustering.bounds.medoid_bounds import _Relaxation
from branchnet.clustering.bounds.width_knapsack import PricedWidths
from branchnet.clustering.search_problem import make_problem
from tests.clustering.toys import as_affinity, brute_costs, brute_sizes, names, random_affinity, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1, 14.9]


@pytest.mark.parametrize("seed", range(20))
def test_any_potentials_give_a_concave_function_below_the_optimum(seed: int) -> None:
    """value(other) <= value(here) + slope * (other - here), for any two places."""
    generator = np.random.default_rng(seed)
    affinity = (random_affinity if seed % 2 else rsa_like_affinity)(5, 3, seed)
    problem = make_problem(affinity, COSTS[:3], "params", objective="medoid")
    limit = float(generator.uniform(0.4, 0.9)) * problem.sizes.separate
    best = float(brute_costs(affinity, "medoid")[brute_sizes(5, COSTS[:3]) <= limit].min())
    widths = PricedWidths(problem.rules, problem.sizes.table, limit)
    relaxation = _Relaxation(problem.losses, problem.rules, widths)
    for spread in (0.01, 0.1, 1.0):
        here, there = (relaxation.start(best) + spread * generator.normal(size=(3, 5, 5)) for _ in range(2))
        here[-1], there[-1] = here[-1, :, :1], there[-1, :, :1]  # in the end one number for each task
        value, slope = relaxation.value(here)
        other, _ = relaxation.value(there)
        last = float((slope[-1, :, 0] * (there - here)[-1, :, 0]).sum())
        assert other <= value + float((slope[:-1] * (there - here)[:-1]).sum()) + last + 1e-9
        assert max(value, other) <= best + 1e-9


def directed(n: int, depth: int, seed: int) -> Affinity:
    values = np.random.default_rng(seed).uniform(-0.5, 1.2, (depth, n, n))
    values[:, np.arange(n), np.arange(n)] = 1.0
    return Affinity(names(n), [f"stage{d}" for d in range(depth)], values, measure="stitched")


@pytest.mark.parametrize("seed", range(12))
def test_bounds_stay_below_the_exact_optimum(seed: int) -> None:
    """Symmetric, directed and grouped losses, with negative ones, weights and constraints."""
    generator = np.random.default_rng(seed)
    n, depth = int(generator.integers(5, 9)), int(generator.integers(1, 5))
    affinity = (random_affinity, rsa_like_affinity, directed)[seed % 3](n, depth, seed)
    constraints = [None, Constraints(max_clusters=n - 2), Constraints(apart=[["t0", "t1"]])][seed // 3 % 3]
    budget = Budget(float(generator.uniform(0.4, 0.9)), relative=True)
    best = search(affinity, COSTS[:depth], budget, objective="medoid", constraints=constraints, method="exact")
    problem = make_problem(affinity, COSTS[:depth], "params", objective="medoid", constraints=constraints)
    ceiling = best.cost + 0.1 * abs(best.cost) + 1e-6
    bounds = list(
        rising_bounds(problem.losses, problem.rules, problem.sizes.table, best.limit, target=ceiling, effort=40)
    )
    optimum = problem.losses.verdict(best.tree).cost + problem.losses.verdict(best.tree).surcharge
    assert max(bounds) <= optimum + 1e-9


def test_tying_the_stages_together_raises_the_bound() -> None:
    for seed in range(2):
        affinity = rsa_like_affinity(8, 4, seed)
        best = search(affinity, COSTS, "50% params", objective="medoid", method="exact")
        problem = make_problem(affinity, COSTS, "params", objective="medoid")
        bounds = list(
            rising_bounds(problem.losses, problem.rules, problem.sizes.table, best.limit, target=best.cost, effort=100)
        )
        assert max(bounds) <= best.cost + 1e-9
        assert max(bounds) > bounds[0] + 0.5 * (best.cost - bounds[0])


def test_equal_tasks_are_served_for_nothing() -> None:
    """Three groups of equal tasks and room for three networks: nothing is lost, and the bound says so."""
    group = np.arange(12) % 3
    values = np.where(group[:, None] == group, 1.0, 0.2)[None].repeat(2, axis=0)
    result = search(as_affinity(values), [1.0, 1.0], Budget(6.0), objective="medoid", method="local")
    assert result.cost == pytest.approx(0.0, abs=1e-12)
    assert result.lower_bound >= -1e-9
