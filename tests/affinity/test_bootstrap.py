"""Standard errors against repeated resampling by hand, and against samples of fresh inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from branchnet.affinity import cka, compare_rdms, rdm, rsa
from branchnet.affinity.bootstrap import draw_weights, resample_entries
from branchnet.errors import AffinityError
from tests.affinity.toys import given, images, rows, small_cnn


def related(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two networks that agree in part."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    noise = [torch.randn(count, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    return torch.cat([shared, noise[0]], 1), torch.cat([shared, noise[1]], 1)


@pytest.mark.parametrize("comparison", ["spearman", "pearson", "cosine", "kendall"])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_equal_resampling_by_index(comparison: str, ties: bool) -> None:
    """Weights must give what repeating rows gives, without the pairs of copies of one input."""
    inputs = 15
    rdms = torch.stack([rdm(table) for table in related(inputs, 0)])
    if ties:
        rdms = (rdms * 5).round()
    upper = np.triu_indices(inputs, 1)
    entries = np.stack([one.numpy()[upper] for one in rdms])
    found = resample_entries(entries, comparison, 10, seed=3)
    for draw, weights in enumerate(draw_weights(inputs, 10, seed=3)):
        chosen = np.repeat(np.arange(inputs), weights)
        row, column = np.triu_indices(inputs, 1)
        kept = chosen[row] != chosen[column]
        first, second = (one.numpy()[chosen[row], chosen[column]][kept] for one in rdms)
        assert kept.sum() == (len(first))
        np.testing.assert_allclose(found[draw, 0, 1], by_hand(first, second, comparison), atol=1e-10)


def by_hand(first: np.ndarray, second: np.ndarray, comparison: str) -> float:
    if comparison == "spearman":
        return spearmanr(first, second).statistic
    if comparison == "pearson":
        return np.corrcoef(first, second)[0, 1]
    if comparison == "cosine":
        return first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    signs = [np.sign(x[:, None] - x[None, :]) for x in (first, second)]
    return (signs[0] * signs[1]).sum() / (len(first) * (len(first) - 1))


@pytest.mark.parametrize("measure", [rsa, cka])
def test_standard_error_is_the_spread_over_fresh_inputs(measure) -> None:
    """The error from one probe of 60 inputs against the real spread over 60 independent probes."""
    estimates, errors = [], []
    for seed in range(60):
        first, second = related(60, seed)
        found = measure({"a": given(first), "b": given(second)}, rows(60), bootstrap=40)
        estimates.append(found.values[0, 0, 1])
        errors.append(found.standard_errors[0, 0, 1])
    assert 0.7 < np.mean(errors) / np.std(estimates) < 1.4


def test_replicates_and_interval() -> None:
    affinity = rsa({"a": small_cnn(0), "b": small_cnn(1)}, images(30), bootstrap=50)
    assert affinity.replicates(20).shape == (20, 3, 2, 2)
    np.testing.assert_array_equal(affinity.replicates(20), affinity.replicates()[:20])
    np.testing.assert_allclose(affinity.standard_errors, affinity.replicates().std(axis=0, ddof=1))
    low, high = affinity.interval(0.8)
    inside = (affinity.replicates() >= low) & (affinity.replicates() <= high)
    assert 0.75 < inside[:, :, 0, 1].mean() < 0.85
    with pytest.raises(AffinityError, match="51 replicates asked for, 50 held"):
        affinity.replicates(51)
    with pytest.raises(AffinityError, match="0 held"):
        rsa({"a": small_cnn(0)}, images(5), bootstrap=0).replicates(5)


def test_no_copies_bias() -> None:
    """Unrelated networks: were copies of an input counted, their zero distances would correlate."""
    tables = [
        torch.randn(12, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2)
    ]
    affinity = rsa({"a": given(tables[0]), "b": given(tables[1])}, rows(12), bootstrap=400)
    assert abs(affinity.replicates()[:, 0, 0, 1].mean() - affinity.values[0, 0, 1]) < 0.08
    expected = compare_rdms([rdm(table) for table in tables])[0, 1]
    np.testing.assert_allclose(affinity.values[0, 0, 1], expected)
