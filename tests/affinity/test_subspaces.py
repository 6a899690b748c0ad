"""Procrustes, SVCCA and PWCCA against scipy, scikit-learn and their definitions on features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.spatial import procrustes as scipy_procrustes
from sklearn.cross_decomposition import CCA

from branchnet.affinity import procrustes, pwcca, svcca
from branchnet.errors import AffinityError
from tests.affinity.toys import given, rows


def tables(inputs: int = 40, widths: tuple[int, int] = (5, 5)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(inputs, 3, generator=generator, dtype=torch.float64)
    mixed = [torch.randn(3, width, generator=generator, dtype=torch.float64) for width in widths]
    noise = [torch.randn(inputs, width, generator=generator, dtype=torch.float64) for width in widths]
    return [shared @ mix + extra for mix, extra in zip(mixed, noise, strict=True)]


def measured(measure, content: list[torch.Tensor], **options) -> float:
    networks = {str(index): given(table) for index, table in enumerate(content)}
    return measure(networks, rows(len(content[0])), **options).values[0, 0, 1]


def centred(content: list[torch.Tensor]) -> list[np.ndarray]:
    return [(table - table.mean(0)).numpy() for table in content]


def test_procrustes_equals_scipy() -> None:
    x, y = (table / np.linalg.norm(table) for table in centred(tables()))
    _, nuclear = orthogonal_procrustes(x, y)
    np.testing.assert_allclose(measured(procrustes, tables()), nuclear, atol=1e-10)
    *_, disparity = scipy_procrustes(*(table.numpy() for table in tables()))
    np.testing.assert_allclose(1 - measured(procrustes, tables()) ** 2, disparity, atol=1e-10)


def test_procrustes_pads_the_narrower() -> None:
    narrow, wide = tables(widths=(3, 8))
    padded = torch.cat([narrow, torch.zeros(40, 5, dtype=torch.float64)], dim=1)
    np.testing.assert_allclose(measured(procrustes, [narrow, wide]), measured(procrustes, [padded, wide]), atol=1e-10)


def test_svcca_with_all_variance_is_cca() -> None:
    x, y = centred(tables())
    found = measured(svcca, tables(), variance=1.0)
    np.testing.assert_allclose(found, np.cos(subspace_angles(x, y)).mean(), atol=1e-8)
    first, second = CCA(n_components=5, max_iter=5000, tol=1e-12, scale=False).fit_transform(x, y)
    theirs = [abs(np.corrcoef(first[:, c], second[:, c])[0, 1]) for c in range(5)]
    np.testing.assert_allclose(found, np.mean(theirs), atol=1e-3)


def reduced(table: np.ndarray, variance: float) -> np.ndarray:
    left, values, right = np.linalg.svd(table, full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(values**2) / (values**2).sum(), variance)) + 1
    return (left[:, :kept] * values[:kept]) @ right[:kept]


def kept_rank(table: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(table, tol=1e-8))


@pytest.mark.parametrize("variance", [0.7, 0.9])
def test_svcca_by_definition(variance: float) -> None:
    x, y = (reduced(table, variance) for table in centred(tables(widths=(6, 9))))
    ranks = kept_rank(x), kept_rank(y)
    bases = [np.linalg.svd(t, full_matrices=False)[0][:, :r] for t, r in zip((x, y), ranks, strict=True)]
    expected = np.cos(subspace_angles(*bases)).mean()
    np.testing.assert_allclose(measured(svcca, tables(widths=(6, 9)), variance=variance), expected, atol=1e-8)


def test_pwcca_by_definition() -> None:
    """Morcos et al. 2018, equation 1: weights from inner products of canonical variates and neurons."""

    def one_way(x: np.ndarray, y: np.ndarray) -> float:
        u, v = (np.linalg.svd(t, full_matrices=False)[0] for t in (x, y))
        left, correlations, _ = np.linalg.svd(u.T @ v, full_matrices=False)
        weights = np.abs((u @ left).T @ x).sum(axis=1)
        return float(weights @ correlations / weights.sum())

    x, y = centred(tables(widths=(4, 7)))
    expected = (one_way(x, y) + one_way(y, x)) / 2
    np.testing.assert_allclose(measured(pwcca, tables(widths=(4, 7)), variance=1.0), expected, atol=1e-8)


def test_refusals() -> None:
    networks = {str(index): given(table) for index, table in enumerate(tables())}
    for measure in (svcca, pwcca):
        with pytest.raises(AffinityError, match="variance is 0"):
            measure(networks, rows(40), variance=0)
    with pytest.raises(AffinityError, match="pwcca has no standard errors"):
        pwcca(networks, rows(40), bootstrap=10)
