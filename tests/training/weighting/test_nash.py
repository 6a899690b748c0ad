"""Nash-MTL's bargain: its equation, its invariance, and TorchJD's solution by another algorithm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.training import nash_mtl
from branchnet.training.weighting.nash import bargaining_coefficients


def rows(seed: int, count: int, numbers: int) -> torch.Tensor:
    return torch.randn(count, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_the_coefficients_solve_the_papers_equation(seed: int, count: int) -> None:
    matrix = rows(seed, count, 12)
    products = matrix @ matrix.T
    found = bargaining_coefficients(products)
    assert (found > 0).all()
    torch.testing.assert_close(found * (products @ found), torch.ones(count).double(), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5))
def test_the_result_does_not_depend_on_the_scales_of_the_losses(seed: int, count: int, scales: list[float]) -> None:
    matrix = rows(seed, count, 12)
    scaled = matrix * torch.tensor(scales[:count], dtype=torch.float64)[:, None]
    torch.testing.assert_close(nash_mtl(scaled), nash_mtl(matrix))


def test_every_task_gains_and_the_norm_is_one() -> None:
    for seed in range(20):
        matrix = rows(seed, 4, 9)
        found = nash_mtl(matrix)
        assert (matrix @ found > 0).all()
        assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_the_solution_is_that_of_torchjd() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("ecos")
    for seed in range(5):
        matrix = rows(seed, 3, 7)
        with pytest.warns(UserWarning, match="DPP"):
            theirs = aggregation.NashMTL(n_tasks=3)(matrix)
        torch.testing.assert_close(nash_mtl(matrix), theirs, rtol=0.02, atol=0.02)


def test_opposite_rows_zeros_and_copies_have_finite_results() -> None:
    assert nash_mtl(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert nash_mtl(torch.tensor([[1.0, -2.0], [-1.0, 2.0]])).norm() < 1e-3
    torch.testing.assert_close(nash_mtl(torch.tensor([[3.0, 4.0], [3.0, 4.0]])), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(nash_mtl(torch.tensor([[0.0, 0.0], [3.0, 4.0]])), torch.tensor([0.6, 0.8]))
