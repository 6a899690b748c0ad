"""RDMs and their comparison against numpy, scipy and rsatoolbox, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, spearmanr

from branchnet.affinity import compare_rdms, rdm
from branchnet.errors import AffinityError

seeds = st.integers(0, 10_000)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_rdms(seed: int, count: int, inputs: int) -> torch.Tensor:
    return torch.stack([rdm(normal(seed + index, inputs, 7)) for index in range(count)])


@given(seed=seeds, inputs=st.integers(3, 30), width=st.integers(2, 200), shift=st.floats(-100, 100))
@settings(deadline=None, max_examples=40)
def test_pearson_equals_numpy(seed: int, inputs: int, width: int, shift: float) -> None:
    features = normal(seed, inputs, width) + shift
    np.testing.assert_allclose(rdm(features).numpy(), 1 - np.corrcoef(features.numpy()), atol=1e-10)


@pytest.mark.parametrize(
    ("dissimilarity", "metric"), [("pearson", "correlation"), ("cosine", "cosine"), ("euclidean", "euclidean")]
)
@pytest.mark.parametrize("center", [False, True])
def test_equals_scipy(dissimilarity: str, metric: str, center: bool) -> None:
    features = normal(1, 15, 40) + 3
    used = features - features.mean(0) if center else features
    expected = squareform(pdist(used.numpy(), metric))
    np.testing.assert_allclose(rdm(features, dissimilarity=dissimilarity, center=center).numpy(), expected, atol=1e-10)


def test_wide_features_in_many_blocks() -> None:
    """Wider than one block, with a mean that drifts over the features, so that block means matter."""
    features = normal(0, 300, 30_000) + torch.linspace(-50, 50, 30_000, dtype=torch.float64)
    np.testing.assert_allclose(rdm(features).numpy(), 1 - np.corrcoef(features.numpy()), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_close(dtype: torch.dtype) -> None:
    features = normal(2, 20, 3000, dtype=dtype)
    found = rdm(features)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), 1 - np.corrcoef(features.double().numpy()), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("width", [16, 300])
def test_distances_that_are_equal_in_exact_arithmetic_have_equal_ranks(
    width: int, levels: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(width)
    numbers = torch.randint(0, levels, (2, 60, width), generator=generator)
    exact = [pdist(one.numpy(), "sqeuclidean") for one in numbers]  # sums of whole numbers: no rounding
    found = [rdm(one.to(dtype) / 255 * 0.7 + 0.3, dissimilarity="euclidean") for one in numbers]
    upper = np.triu_indices(60, 1)
    for matrix, squares in zip(found, exact, strict=True):
        assert len(np.unique(matrix.numpy()[upper])) == len(np.unique(squares))
    expected = spearmanr(*exact).statistic
    assert compare_rdms(found)[0, 1].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlations_that_are_equal_in_exact_arithmetic_are_equal(dtype: torch.dtype) -> None:
    """Inputs with ten of forty features on: a correlation follows from the number that two of them share."""
    order = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    on = (order < 10).to(dtype)
    shared = (on @ on.T).numpy()[np.triu_indices(50, 1)]
    found = rdm(on * 0.7 + 0.1).numpy()[np.triu_indices(50, 1)]
    assert [len(np.unique(found[shared == number])) for number in np.unique(shared)] == [1] * len(np.unique(shared))


def test_the_same_input_twice_is_no_distance_apart() -> None:
    features = normal(5, 8, 100, dtype=torch.float32)
    features[3] = features[6]
    assert rdm(features, dissimilarity="euclidean")[3, 6] == 0


def test_features_of_any_rank() -> None:
    features = normal(3, 6, 4, 5, 2)
    assert torch.equal(rdm(features), rdm(features.flatten(1)))


@given(seed=seeds, scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=25)
def test_scale_and_permutation(seed: int, scale: float) -> None:
    features = normal(seed, 9, 12)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    reference = rdm(features)
    torch.testing.assert_close(rdm(features * scale), reference, atol=1e-10, rtol=0)
    torch.testing.assert_close(rdm(features[order]), reference[order][:, order], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.randn(2, 5), "at least 3 inputs"),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]), "input 2 are constant"),
        (torch.full((4, 1000), 0.1), "constant"),
        (torch.tensor([[1.0, 2.0], [float("nan"), 4.0], [5.0, 4.0]]), "not all finite"),
    ],
)
def test_impossible_features(features: torch.Tensor, message: str) -> None:
    with pytest.raises(AffinityError, match=message):
        rdm(features)


@pytest.mark.parametrize("comparison", ["spearman", "pearson", "kendall", "cosine"])
def test_comparison_equals_references(comparison: str) -> None:
    rdms = random_rdms(0, 4, 12)
    upper = np.triu_indices(12, 1)
    vectors = [one.numpy()[upper] for one in rdms]
    references = {
        "spearman": lambda a, b: spearmanr(a, b).statistic,
        "pearson": lambda a, b: np.corrcoef(a, b)[0, 1],
        "kendall": lambda a, b: kendalltau(a, b).statistic,
        "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    }
    expected = [[references[comparison](a, b) for b in vectors] for a in vectors]
    np.testing.assert_allclose(compare_rdms(rdms, comparison=comparison).numpy(), expected, atol=1e-10)


@given(seed=seeds, levels=st.integers(2, 6))
@settings(deadline=None, max_examples=30)
def test_ties(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    rdms = np.zeros((3, 8, 8))
    upper = np.triu_indices(8, 1)
    for one in rdms:
        one[upper] = np.append(random.integers(0, levels, 26), [0, levels])
    vectors = [one[upper] for one in rdms]
    found = compare_rdms(torch.from_numpy(rdms)).numpy()
    expected = spearmanr(np.stack(vectors), axis=1).statistic
    np.testing.assert_allclose(found, expected, atol=1e-10)
    tau = compare_rdms(torch.from_numpy(rdms), comparison="kendall").numpy()
    np.testing.assert_allclose(tau[0, 1], tau_a(vectors[0], vectors[1]), atol=1e-10)


def tau_a(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-a by counting."""
    signs = [np.sign(x[:, None] - x[None, :]) for x in (a, b)]
    return float((signs[0] * signs[1]).sum() / (len(a) * (len(a) - 1)))


def test_equals_rsatoolbox() -> None:
    toolbox = pytest.importorskip("rsatoolbox")
    features = [normal(seed, 20, 30) for seed in range(3)]
    data = [toolbox.data.Dataset(one.numpy()) for one in features]
    theirs = toolbox.rdm.calc_rdm(data, method="correlation")
    ours = torch.stack([rdm(one) for one in features])
    np.testing.assert_allclose(ours.numpy(), theirs.get_matrices(), atol=1e-10)
    expected = toolbox.rdm.compare(theirs, theirs, method="spearman")
    np.testing.assert_allclose(compare_rdms(ours).numpy(), expected, atol=1e-10)


def test_comparison_of_constant_rdm_is_refused() -> None:
    constant = torch.ones(5, 5) - torch.eye(5)
    with pytest.raises(AffinityError, match="RDM 1: all pairs of inputs"):
        compare_rdms([rdm(normal(0, 5, 4)).float(), constant])
