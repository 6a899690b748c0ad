"""Affinities computed on the GPU are those computed on the CPU, whatever precision the caller allows networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import branchnet
from branchnet import Affinity
from tests.gpu.toys import TASKS, branched, images, networks, staged

PROBE = images(40, seed=3)


@pytest.fixture(scope="module")
def made() -> dict[str, branchnet.StagedNetwork]:
    return staged(networks())


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """Products of matrices in TF32, as callers may want them for their networks. Convolutions stay in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def assert_same(found: Affinity, expected: Affinity, tolerance: float) -> None:
    assert found.tasks == expected.tasks and found.locations == expected.locations
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("comparison", "tolerance"), [("pearson", 1e-4), ("cosine", 1e-4), ("spearman", 2e-3)]
)  # ranks of dissimilarities that are nearly equal may change places
def test_rsa(made: dict[str, branchnet.StagedNetwork], device: str, comparison: str, tolerance: float) -> None:
    expected = branchnet.rsa(made, PROBE, comparison=comparison, bootstrap=20)  # type: ignore[arg-type]
    found = branchnet.rsa(made, PROBE, comparison=comparison, bootstrap=20, device=device)  # type: ignore[arg-type]
    assert_same(found, expected, tolerance)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka(made: dict[str, branchnet.StagedNetwork], device: str, kernel: str) -> None:
    expected = branchnet.cka(made, PROBE, kernel=kernel, bootstrap=0)  # type: ignore[arg-type]
    assert_same(branchnet.cka(made, PROBE, kernel=kernel, bootstrap=0, device=device), expected, 1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", [branchnet.procrustes, branchnet.svcca, branchnet.pwcca])
def test_subspaces(made: dict[str, branchnet.StagedNetwork], device: str, measure: object) -> None:
    expected = measure(made, PROBE)  # type: ignore[operator]
    assert_same(measure(made, PROBE, device=device), expected, 5e-3)  # type: ignore[operator]


@pytest.mark.usefixtures("tf32_allowed")
def test_tf32_that_the_caller_allows_does_not_count(made: dict[str, branchnet.StagedNetwork], device: str) -> None:
    found = branchnet.rsa(made, PROBE, comparison="pearson", bootstrap=0, device=device)
    assert_same(found, branchnet.rsa(made, PROBE, comparison="pearson", bootstrap=0), 1e-4)
    assert torch.backends.cuda.matmul.allow_tf32


def test_several_passes_and_probes_of_batches_on_the_cpu(made: dict[str, branchnet.StagedNetwork], device: str) -> None:
    expected = branchnet.rsa(made, PROBE, comparison="pearson", bootstrap=0)
    one_stage = 40 * 8 * 8 * 8 * 4
    found = branchnet.rsa(
        made, list(PROBE.split(16)), comparison="pearson", bootstrap=0, device=device, memory_limit=one_stage
    )
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("method", ["lookahead", "first-order", "cosine"])
def test_gradient_affinity(device: str, method: str) -> None:
    targets = {task: torch.rand(8, 2, 8, 8) if task in ("depth", "edges") else torch.rand(8, 5) for task in TASKS}
    losses = dict.fromkeys(TASKS, torch.nn.functional.mse_loss)

    def measured(place: str) -> Affinity:
        network = branched().to(place)
        batch = (images(8, seed=1).to(place), {task: target.to(place) for task, target in targets.items()})
        return branchnet.gradient_affinity(network, [batch], losses, method=method, learning_rate=0.1, bootstrap=0)  # type: ignore[arg-type]

    found, expected = measured(device), measured("cpu")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-2, atol=1e-2 * np.abs(expected.values).max())


@pytest.mark.parametrize("method", ["lookahead", "first-order", "cosine"])
def test_gradient_affinity_of_a_loader_on_the_cpu(device: str, method: str) -> None:
    network = branched()
    with torch.no_grad():
        outputs = network(PROBE)
    samples = [(x, {task: outputs[task][i] + 0.1 for task in TASKS}) for i, x in enumerate(PROBE)]
    losses = dict.fromkeys(TASKS, torch.nn.functional.mse_loss)

    def measured() -> Affinity:
        loader = DataLoader(samples, 10)
        return branchnet.gradient_affinity(network, loader, losses, method=method, learning_rate=1e-2, bootstrap=0)

    expected = measured()
    network.to(device)
    assert_same(measured(), expected, 1e-3)
