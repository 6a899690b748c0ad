"""The relaxation of objectives by the largest loss as lenses of several levels: never above the optimum, concave."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import Budget, Constraints, search
from branchnet.clustering.bounds.chain_branch_and_bound import chain_bounds
from branchnet.clustering.bounds.clique_bounds import stage_radii
from branchnet.clustering.bounds.lower_bounds import rising_bounds
from branchnet.clustering.bounds.radius_bounds import _Relaxation, radius_bounds
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.search_problem import make_problem
from tests.clustering.toys import affinities, as_affinity, brute_costs, brute_sizes, random_affinity, rsa_like_affinity

COSTS = [0.2, 1.2, 7.1, 14.9]
NAMES = ["mean-max", "diameter-sum"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(10))
def test_any_potentials_give_a_concave_function_below_the_optimum(name: str, seed: int) -> None:
    """value(other) <= value(here) + slope * (other - here), for any two places."""
    generator = np.random.default_rng(seed)
    affinity = (random_affinity if seed % 2 else rsa_like_affinity)(5, 3, seed)
    problem = make_problem(affinity, COSTS[:3], "params", objective=name)
    limit = float(generator.uniform(0.4, 0.9)) * problem.sizes.separate
    best = float(brute_costs(affinity, name)[brute_sizes(5, COSTS[:3]) <= limit].min())
    widths = WidthBounds(problem.rules, problem.sizes.table, limit)
    relaxation = _Relaxation(problem.losses, [stage_radii(pairs) for pairs in problem.losses.pairs], problem.rules)
    for spread in (0.01, 0.1, 1.0):
        here, there = (relaxation.start(best) + spread * generator.normal(size=(3, 5, 5)) for _ in range(2))
        here[-1], there[-1] = here[-1, :, :1], there[-1, :, :1]  # in the end one number for each task
        excess, more = spread * generator.uniform(size=(2, 3, 5)) / 5
        value, slope, excess_slope = relaxation.value(here, excess, widths)
        other = relaxation.value(there, more, widths)[0]
        way = (there - here) * slope
        risen = float(way[:-1].sum() + way[-1, :, 0].sum() + (excess_slope * (more - excess)).sum())
        assert other <= value + risen + 1e-9
        assert max(value, other) <= best + 1e-9


@settings(max_examples=60, deadline=None)
@given(affinities(max_tasks=6, max_depth=2), st.sampled_from(NAMES), st.floats(0.01, 1.0), st.floats(1.0, 1.5))
def test_bounds_rise_and_stay_below_all_trees(affinity: Affinity, name: str, share: float, above: float) -> None:
    depth, n = affinity.values.shape[:2]
    limit = (1 + share * (n - 1)) * sum(COSTS[:depth])
    best = float(brute_costs(affinity, name)[brute_sizes(n, COSTS[:depth]) <= limit].min())
    problem = make_problem(affinity, COSTS[:depth], "params", objective=name)
    radii = [stage_radii(pairs) for pairs in problem.losses.pairs]
    table, target = problem.sizes.table, above * best + 1e-6
    bounds = list(radius_bounds(problem.losses, radii, problem.rules, table, limit, target, 20))
    assert bounds == sorted(bounds)
    assert bounds[-1] <= best + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_bounds_under_constraints_stay_below_the_exact_optimum(name: str) -> None:
    for seed in range(12):
        generator = np.random.default_rng(seed)
        n, depth = int(generator.integers(7, 9)), int(generator.integers(2, 4))
        affinity = (random_affinity, rsa_like_affinity)[seed % 2](n, depth, seed)
        constraints = [None, Constraints(max_clusters=n - 2), Constraints(apart=[["t0", "t1"]])][seed % 3]
        budget = Budget(float(generator.uniform(0.4, 0.9)), relative=True)
        best = search(affinity, COSTS[:depth], budget, objective=name, constraints=constraints, method="exact")
        problem = make_problem(affinity, COSTS[:depth], "params", objective=name, constraints=constraints)
        radii = [stage_radii(pairs) for pairs in problem.losses.pairs]
        table, target = problem.sizes.table, 1.1 * best.cost
        bounds = list(radius_bounds(problem.losses, radii, problem.rules, table, best.limit, target, 50))
        assert 0 < max(bounds) <= best.cost + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_lenses_bound_better_than_chains_where_no_cluster_is_much_larger_than_the_others(name: str) -> None:
    """Stages that have nothing to do with each other, of tasks in three dimensions."""
    lenses, chains = [], []
    for seed in range(3):
        vectors = np.random.default_rng(seed).normal(size=(3, 9, 3))
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        affinity = as_affinity(vectors @ vectors.transpose(0, 2, 1))
        best = search(affinity, COSTS[:3], "50% params", objective=name, method="exact")
        problem = make_problem(affinity, COSTS[:3], "params", objective=name)
        radii = [stage_radii(pairs) for pairs in problem.losses.pairs]
        given = (problem.losses, radii, problem.rules, problem.sizes.table, best.limit, best.cost)
        lenses.append(1 - max(radius_bounds(*given, 100)) / best.cost)
        chains.append(1 - max(chain_bounds(*given, 100)) / best.cost)
        both = rising_bounds(problem.losses, problem.rules, problem.sizes.table, best.limit, target=best.cost)
        assert 1 - max(both) / best.cost <= min(lenses[-1], chains[-1]) + 0.01
        assert min(lenses[-1], chains[-1]) >= -1e-9
    assert np.mean(lenses) < 0.8 * np.mean(chains)
