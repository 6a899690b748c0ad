"""Several networks per task: means, ceilings and what seeds agree on."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from branchnet.affinity import compare_rdms, rdm, rsa
from tests.affinity.toys import given, rows

INPUTS = 30


def table(base: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    fresh = torch.randn(base.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return base + noise * fresh


def tables(noise: float, tasks: int = 4, seeds: int = 3) -> list[list[torch.Tensor]]:
    """Tasks whose common ground differs from pair to pair, each seen by several noisy networks."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(tasks, INPUTS, 8, generator=generator, dtype=torch.float64)
    bases = [sum(parts[other] / (1 + abs(task - other)) for other in range(tasks)) for task in range(tasks)]
    return [[table(base, noise, 100 * task + seed) for seed in range(seeds)] for task, base in enumerate(bases)]


def measure(content: list[list[torch.Tensor]], **options):
    return rsa({f"task{t}": [given(one) for one in ones] for t, ones in enumerate(content)}, rows(INPUTS), **options)


def test_mean_ceiling_and_seed_correlation_by_hand() -> None:
    content = tables(0.5)
    found = measure(content)
    rdms = [[rdm(one) for one in ones] for ones in content]
    between = compare_rdms([one for ones in rdms for one in ones]).numpy().reshape(4, 3, 4, 3)
    for i in range(4):
        pairs = [between[i, s, i, t] for s in range(3) for t in range(s)]
        np.testing.assert_allclose(found.reliability.ceiling[0, i], np.mean(pairs))
        for j in range(4):
            expected = 1.0 if i == j else between[i, :, j, :].mean()
            np.testing.assert_allclose(found.values[0, i, j], expected)
    upper = np.triu_indices(4, 1)
    vectors = [between[:, s, :, s][upper] for s in range(3)]
    expected = np.mean([spearmanr(vectors[s], vectors[t]).statistic for s in range(3) for t in range(s)])
    np.testing.assert_allclose(found.reliability.seed_correlation[0], expected)


def test_seed_noise_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "branchnet"):
        noisy = measure(tables(50.0), bootstrap=0)
    assert noisy.reliability.noise(noisy.locations) == ("only",)
    assert "seed noise at: only" in caplog.text
    clear = measure(tables(0.2), bootstrap=0)
    assert clear.reliability.noise(clear.locations) == ()
    assert clear.reliability.ceiling.mean() > noisy.reliability.ceiling.mean()


def test_seeds_are_resampled_too() -> None:
    """With noisy networks, errors that also resample networks are wider than those over inputs alone."""
    content = tables(2.0)
    both = measure(content).standard_errors[0]
    alone = measure([ones[:1] for ones in content]).standard_errors[0]
    assert measure([ones[:1] for ones in content]).reliability is None
    assert both.max() > 0
    assert alone.max() > 0


def test_too_few_tasks_to_rank() -> None:
    found = measure(tables(0.5, tasks=2))
    assert found.reliability.seed_correlation is None
    assert np.isfinite(found.reliability.ceiling).all()


def test_unequal_numbers_of_networks() -> None:
    content = tables(0.5)
    content[1] = content[1][:1]
    found = measure(content)
    assert found.reliability.seed_correlation is None
    np.testing.assert_allclose(found.reliability.ceiling[0, 1], found.reliability.ceiling[0, [0, 2, 3]].mean())
