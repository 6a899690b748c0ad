"""CKA against its definitions written out, and the unbiased estimator's promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchnet.affinity import cka
from branchnet.errors import AffinityError
from tests.affinity.toys import given, images, rows, small_cnn


def tables(inputs: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(inputs, width, generator=generator, dtype=torch.float64) + 2 for width in (4, 6)]


def measured(content: list[torch.Tensor], **options) -> float:
    networks = {str(index): given(table) for index, table in enumerate(content)}
    return cka(networks, rows(len(content[0])), bootstrap=0, **options).values[0, 0, 1]


def test_linear_by_features() -> None:
    """Kornblith et al. 2019, equation 4: ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred features."""
    x, y = ((table - table.mean(0)).numpy() for table in tables())
    norm = np.linalg.norm
    expected = norm(y.T @ x) ** 2 / norm(x.T @ x) / norm(y.T @ y)
    np.testing.assert_allclose(measured(tables()), expected, atol=1e-12)


def test_by_hand() -> None:
    """Three inputs on a line and at the corners of a triangle: K = x x^T and L = I - 1/3, so CKA = 1 / sqrt(2)."""
    line, corners = torch.tensor([[-1.0], [0.0], [1.0]]).double(), torch.eye(3).double()
    np.testing.assert_allclose(measured([line, corners]), 1 / np.sqrt(2), atol=1e-12)


@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_rbf_by_definition(bandwidth: float) -> None:
    kernels = []
    for table in tables():
        distances = torch.cdist(table, table).numpy()
        width = bandwidth * np.median(distances[np.triu_indices(20, 1)])
        kernels.append(np.exp(-(distances**2) / (2 * width**2)))
    centre = np.eye(20) - 1 / 20
    hsic = lambda k, l: np.trace(k @ centre @ l @ centre)  # noqa: E731, E741
    k, l = kernels  # noqa: E741
    expected = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))
    np.testing.assert_allclose(measured(tables(), kernel="rbf", bandwidth=bandwidth), expected, atol=1e-9)


def song(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """HSIC_1 as Song et al. 2012, equation 5, writes it."""
    n = len(k)
    k, l = k - np.diag(k.diagonal()), l - np.diag(l.diagonal())  # noqa: E741
    ones = np.ones(n)
    terms = (
        np.trace(k @ l)
        + (ones @ k @ ones) * (ones @ l @ ones) / (n - 1) / (n - 2)
        - 2 / (n - 2) * (ones @ k @ l @ ones)
    )
    return terms / (n * (n - 3))


def test_unbiased_by_definition() -> None:
    k, l = ((table @ table.T).numpy() for table in tables())  # noqa: E741
    expected = song(k, l) / np.sqrt(song(k, k) * song(l, l))
    np.testing.assert_allclose(measured(tables(), estimator="unbiased"), expected, atol=1e-10)


def test_minibatch_by_definition() -> None:
    """Nguyen et al. 2021, equation 2, with batches of different sizes."""
    content = tables(26)
    parts = [slice(0, 10), slice(10, 20), slice(20, 26)]
    grams = [[(table[part] @ table[part].T).numpy() for part in parts] for table in content]
    pairs = [[np.mean([song(*both) for both in zip(grams[a], grams[b], strict=True)]) for a in (0, 1)] for b in (0, 1)]
    expected = pairs[0][1] / np.sqrt(pairs[0][0] * pairs[1][1])
    np.testing.assert_allclose(measured(content, estimator="minibatch", batch_size=10), expected, atol=1e-10)


def test_wide_unrelated_features() -> None:
    """With many more features than inputs the biased estimate is near 1 for unrelated networks; the unbiased near 0."""
    generator = torch.Generator().manual_seed(1)
    content = [torch.randn(15, 4000, generator=generator, dtype=torch.float64) for _ in range(2)]
    assert measured(content) > 0.9
    assert abs(measured(content, estimator="unbiased")) < 0.2


def test_too_few_inputs_and_odd_choices() -> None:
    networks = {"a": small_cnn(0), "b": small_cnn(1)}
    with pytest.raises(AffinityError, match=r"expected at least 4 \(unbiased"):
        cka(networks, images(3), estimator="unbiased", bootstrap=0)
    with pytest.raises(AffinityError, match="no batch of the probe has 4 inputs"):
        cka(networks, images(9), estimator="minibatch", batch_size=3)
    for wrong in ({"kernel": "cubic"}, {"estimator": "best"}, {"bandwidth": 0.0}):
        with pytest.raises(AffinityError, match="expected"):
            cka(networks, images(9), **wrong)
