"""The knapsack against every choice there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.deploy.quantization.node_choice import Floats, choose_options


def cheapest(costs: Floats, uses: Floats, limits: Floats) -> float:
    """The least cost over all choices; infinite where none keeps to the limits."""
    best = np.inf
    for choice in product(range(costs.shape[1]), repeat=len(costs)):
        rows = range(len(costs))
        if (sum(uses[n, m] for n, m in zip(rows, choice, strict=True)) <= limits).all():
            best = min(best, sum(costs[n, m] for n, m in zip(rows, choice, strict=True)))
    return best


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 6), options=st.integers(2, 3), resources=st.integers(1, 3))
def test_no_choice_is_cheaper(seed: int, nodes: int, options: int, resources: int) -> None:
    generator = np.random.default_rng(seed)
    costs = generator.integers(-20, 20, (nodes, options)).astype(float)
    uses = generator.integers(0, 20, (nodes, options, resources)).astype(float)
    costs[:, 1:][generator.random((nodes, options - 1)) < 0.1] = np.inf
    uses[generator.random(uses.shape) < 0.05] = np.inf
    # Halves: no sum of whole numbers is within a rounding error of a limit.
    limits = generator.integers(0, 10 * nodes, resources) + 0.5
    limits[generator.random(resources) < 0.2] = np.inf
    limits[generator.random(resources) < 0.2] = 0.0
    wanted = cheapest(costs, np.where(np.isfinite(uses), uses, 1e9), np.where(np.isfinite(limits), limits, 1e8))
    found = choose_options(costs, uses, limits)
    if found is None:
        assert wanted == np.inf
        return
    rows = np.arange(nodes)
    assert costs[rows, found].sum() == wanted
    assert (uses[rows, found].sum(0) <= limits).all()


def test_losses_of_a_millionth_count() -> None:
    costs = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    losses = np.array([[[0.0], [2e-6]], [[0.0], [1e-6]], [[0.0], [1e-6]]])
    found = choose_options(costs, losses, np.array([2.5e-6]))
    assert found is not None and found.tolist() == [0, 1, 1]


def test_nothing_to_choose() -> None:
    found = choose_options(np.zeros((0, 2)), np.zeros((0, 2, 1)), np.ones(1))
    assert found is not None and found.shape == (0,)


@pytest.mark.parametrize("limit", [0.0, 0.9])
def test_none_where_nothing_fits(limit: float) -> None:
    assert choose_options(np.zeros((1, 2)), np.ones((1, 2, 1)), np.array([limit])) is None
