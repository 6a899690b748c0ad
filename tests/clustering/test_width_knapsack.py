"""The best vector of widths under a budget, against all vectors; a budget of 4,000 whole steps rounds nothing."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from branchnet.clustering.bounds.width_knapsack import PricedWidths, WidthBounds, best_widths
from branchnet.clustering.constraints import Constraints, rules_of

Sums = list[tuple[float, tuple[int, ...]]]


def instance(seed: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Costs and sizes, (D, N + 1); some costs are inf, not all sizes grow with the width."""
    generator = np.random.default_rng(seed)
    depth, n = int(generator.integers(1, 4)), int(generator.integers(2, 6))
    table = generator.uniform(-1, 1, (depth, n + 1))
    table[generator.random(table.shape) < 0.2] = np.inf
    sizes = generator.uniform(0.1, 3.0, (depth, n + 1))
    sizes = np.ceil(sizes * 300) if whole else sizes
    table[:, 0], sizes[:, 0] = np.inf, 0.0
    return table, sizes


def all_sums(table: np.ndarray, sizes: np.ndarray, limit: float) -> Sums:
    """Cost and widths of every non-decreasing vector within the limit, cheapest first."""
    depth, n = table.shape[0], table.shape[1] - 1
    found = []
    for widths in combinations_with_replacement(range(1, n + 1), depth):
        places = np.arange(depth), np.array(widths)
        if sizes[places].sum() <= limit and np.isfinite(table[places]).all():
            found.append((float(table[places].sum()), widths))
    return sorted(found)


def bounds(sizes: np.ndarray, limit: float, most: int | None = None) -> WidthBounds:
    names = [f"t{i}" for i in range(sizes.shape[1] - 1)]
    return WidthBounds(rules_of(Constraints(max_clusters=most), names, len(sizes)), sizes, limit)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1000.0, 2000.0, 4000.0]))
def test_whole_steps_give_the_optimum(seed: int, limit: float) -> None:
    table, sizes = instance(seed, whole=True)
    sums = all_sums(table, sizes, limit)
    value, widths = bounds(sizes, limit).least(table)
    found = best_widths(table, sizes, limit)
    if not sums:
        assert (value, widths, found) == (np.inf, (), None)
        return
    assert value == pytest.approx(sums[0][0], abs=1e-12)
    assert widths == found == sums[0][1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 6.0))
def test_rounded_steps_bound_the_optimum_and_are_never_off_by_more_than_a_step_a_stage(seed: int, limit: float) -> None:
    table, sizes = instance(seed, whole=False)
    value, _ = bounds(sizes, limit).least(table)
    found = best_widths(table, sizes, limit)
    generous, strict = (all_sums(table, sizes, limit * (1 + way * len(table) / 3990)) for way in (1, -1))
    exact = all_sums(table, sizes, limit)
    assert value <= (exact[0][0] if exact else np.inf) + 1e-12
    assert value >= (generous[0][0] if generous else np.inf) - 1e-12
    if found is not None:
        cost = float(table[np.arange(len(table)), found].sum())
        assert found in [widths for _, widths in exact]
        assert cost <= (strict[0][0] if strict else np.inf) + 1e-12
    else:
        assert not strict


def test_a_budget_of_nothing_leaves_only_what_costs_nothing() -> None:
    table, sizes = np.array([[np.inf, 3.0, 2.0, 1.0]]), np.array([[0.0, 0.0, 0.0, 0.5]])
    assert best_widths(table, sizes, 0.0) == (2,)
    assert bounds(sizes, 0.0).least(table) == (2.0, (2,))
    assert best_widths(table, sizes + np.array([0, 1, 1, 1]), 0.0) is None
    assert best_widths(table, sizes, 0.4) == (2,)
    assert best_widths(table, sizes, 0.5) == (3,)


def test_widths_that_the_rules_forbid_are_not_chosen() -> None:
    table, sizes = np.array([[np.inf, 3.0, 2.0, 1.0]] * 2), np.array([[0.0, 1.0, 2.0, 3.0]] * 2)
    assert bounds(sizes, 100.0).least(table) == (2.0, (3, 3))
    assert bounds(sizes, 100.0, most=2).least(table) == (4.0, (2, 2))


def test_sums_that_do_not_matter_are_not_found() -> None:
    """A sum equal to `most` does not matter; one below it does."""
    table, sizes = np.array([[np.inf, 3.0, 2.2, 1.0]] * 2), np.array([[0.0, 1.0, 2.0, 3.0]] * 2)
    assert bounds(sizes, 4.0).least(table, most=4.0) == (np.inf, ())
    assert bounds(sizes, 4.0).least(table, most=4.1) == (4.0, (1, 3))
    assert bounds(sizes, 100.0).least(np.array([[np.inf, 1.0], [np.inf, np.inf]])[:, [0, 1, 1, 1]]) == (np.inf, ())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_the_best_price_is_the_linear_programme_over_mixtures_of_widths(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    depth, n = int(generator.integers(1, 4)), int(generator.integers(2, 6))
    table, sizes = generator.uniform(-1, 1, (depth, n + 1)), generator.uniform(0.1, 3.0, (depth, n + 1))
    least, largest = (getattr(sizes[:, 1:], way)(axis=1).sum() for way in ("min", "max"))
    limit = float(least + share * (largest - least)) * (1 + 1e-9)
    found = PricedWidths(rules_of(Constraints(), [f"t{i}" for i in range(n)], depth), sizes, limit).least(table)
    each = np.kron(np.eye(depth), np.ones(n))
    exact = linprog(table[:, 1:].ravel(), sizes[:, 1:].reshape(1, -1), [limit], each, np.ones(depth), (0, 1))
    assert found.value == pytest.approx(exact.fun, abs=1e-6)
    stages = np.arange(depth)
    mixed = [found.share * one[stages, found.wide] + (1 - found.share) * one[stages, found.narrow]
             for one in (table, sizes)]  # fmt: skip
    assert mixed[0].sum() == pytest.approx(exact.fun, abs=1e-6)
    assert mixed[1].sum() <= limit * (1 + 1e-6)
