"""One suite for every measure: what any affinity promises, whatever it measures."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from branchnet.affinity import Affinity, cka, procrustes, pwcca, rsa, svcca
from branchnet.errors import AffinityError
from tests.affinity.toys import Block, Staged, given, images, rows, small_cnn

MEASURES = {
    "rsa": rsa,
    "rsa cosine": partial(rsa, dissimilarity="cosine", center=True),
    "rsa euclidean pearson": partial(rsa, dissimilarity="euclidean", comparison="pearson"),
    "rsa kendall": partial(rsa, comparison="kendall"),
    "cka": cka,
    "cka unbiased": partial(cka, estimator="unbiased"),
    "cka rbf": partial(cka, kernel="rbf"),
    "cka minibatch": partial(cka, estimator="minibatch", batch_size=8),
    "procrustes": procrustes,
    "svcca": partial(svcca, variance=0.9),
    "pwcca": partial(pwcca, variance=0.9),
}
# Not rsa by correlation over features, nor pwcca, whose weights are sums over single features.
ROTATION_INVARIANT = [
    "rsa cosine",
    "rsa euclidean pearson",
    *(name for name in MEASURES if not name.startswith("rsa") and name != "pwcca"),
]
ORDER_FREE = [name for name in MEASURES if name != "cka minibatch"]

every_measure = pytest.mark.parametrize("name", MEASURES)


def features(seed: int, inputs: int = 24, width: int = 9) -> torch.Tensor:
    return torch.randn(inputs, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(name: str, *tables: torch.Tensor) -> np.ndarray:
    networks = {f"task{index}": given(table) for index, table in enumerate(tables)}
    return MEASURES[name](networks, rows(len(tables[0]))).values[0]


@every_measure
@cases(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=4)
def test_symmetric_with_ones_bounded_and_scale_free(name: str, seed: int, scale: float) -> None:
    first, second = features(seed), features(seed + 1, width=14)
    values = measured(name, first, second)
    assert np.array_equal(values, values.T)
    assert np.array_equal(values.diagonal(), [1.0, 1.0])
    assert np.abs(values).max() <= 1
    np.testing.assert_allclose(measured(name, first * scale, second), values, atol=1e-8)


@every_measure
def test_identical_networks(name: str) -> None:
    table = features(0)
    np.testing.assert_allclose(measured(name, table, table.clone()), 1.0, atol=1e-9)


@pytest.mark.parametrize("name", ROTATION_INVARIANT)
def test_rotation(name: str) -> None:
    first, second = features(0), features(1)
    rotation, _ = torch.linalg.qr(features(2, 9, 9))
    np.testing.assert_allclose(measured(name, first @ rotation, second), measured(name, first, second), atol=1e-8)


@every_measure
def test_permuting_tasks(name: str) -> None:
    tables = [features(seed) for seed in range(3)]
    values = measured(name, *tables)
    np.testing.assert_allclose(
        measured(name, tables[2], tables[0], tables[1]), values[[2, 0, 1]][:, [2, 0, 1]], atol=1e-10
    )


@pytest.mark.parametrize("name", ORDER_FREE)
def test_permuting_inputs(name: str) -> None:
    tables = [features(seed) for seed in range(2)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(measured(name, *(table[order] for table in tables)), measured(name, *tables), atol=1e-9)


@every_measure
def test_batches_and_precision(name: str) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    probe = images(24)
    reference = MEASURES[name](networks, probe)
    assert reference.locations == ("layer0", "layer1", "layer2")
    listed = MEASURES[name](networks, [probe[:8], probe[8:16], probe[16:]])
    np.testing.assert_allclose(listed.values, reference.values, atol=1e-9)
    assert listed.probe_hash == reference.probe_hash
    single = {task: copy.deepcopy(network).float() for task, network in networks.items()}
    tolerance = 0.02 if name == "rsa kendall" else 2e-3
    np.testing.assert_allclose(MEASURES[name](single, probe.float()).values, reference.values, atol=tolerance)


@every_measure
def test_same_seed_same_result(name: str) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    first, second = (MEASURES[name](networks, images(24)) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    if first.samples is not None:
        assert np.array_equal(first.samples, second.samples)


@every_measure
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_dead_networks_are_named(name: str, value: float) -> None:
    networks = {"alive": given(features(0)), "dead": given(torch.full((24, 9), value, dtype=torch.float64))}
    with pytest.raises(AffinityError, match=r"task 'dead' at 'only'"):
        MEASURES[name](networks, rows(24))


@every_measure
def test_too_few_inputs(name: str) -> None:
    with pytest.raises(AffinityError, match="the probe has 2 inputs"):
        MEASURES[name]({"a": small_cnn(0), "b": small_cnn(1)}, images(2))


@every_measure
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tensors", ["mean", "concatenate"])
def test_several_tensors(name: str, count: int, tensors: str) -> None:
    """What is handed through, masks and integers count for nothing; new tensors count the same, or per feature."""

    class Several(nn.Module):
        def __init__(self, tables: list[torch.Tensor]) -> None:
            super().__init__()
            self.tables = nn.ParameterList(nn.Parameter(table) for table in tables)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            index = x.long().flatten()
            new = [table[index] for table in self.tables]
            return (x, *new, torch.zeros(len(x), 1, 1, 4, dtype=x.dtype), torch.ones(7), index)

    tables = [[features(10 * task + t, width=5 + t) for t in range(count)] for task in range(2)]
    networks = {f"task{task}": Staged(Several(tables[task])) for task in range(2)}
    found = MEASURES[name](networks, rows(24), tensors=tensors).values[0]
    if count == 1:
        np.testing.assert_allclose(found, measured(name, tables[0][0], tables[1][0]), atol=1e-9)
    elif tensors == "mean":
        rescaled = {f"task{task}": Staged(Several([t * 7**k for k, t in enumerate(tables[task])])) for task in range(2)}
        np.testing.assert_allclose(MEASURES[name](rescaled, rows(24)).values[0], found, atol=1e-8)
    elif name != "cka minibatch":
        joined = [torch.cat(ones, dim=1) for ones in tables]
        np.testing.assert_allclose(found, measured(name, *joined), atol=1e-9)


@every_measure
def test_features_function(name: str) -> None:
    tables = [features(seed) for seed in range(2)]
    networks = {f"task{index}": given(table) for index, table in enumerate(tables)}
    found = MEASURES[name](networks, rows(24), features=lambda tensor: tensor[:, 2:])
    np.testing.assert_allclose(found.values[0], measured(name, *(table[:, 2:] for table in tables)), atol=1e-10)


@every_measure
def test_result_survives_a_file(name: str, tmp_path) -> None:
    affinity = MEASURES[name]({"a": [small_cnn(0), small_cnn(3)], "b": small_cnn(1), "c": small_cnn(2)}, images(24))
    affinity.save(tmp_path / "affinity.npz")
    loaded = Affinity.load(tmp_path / "affinity.npz")
    for field in ("tasks", "locations", "measure", "probe_hash", "directed"):
        assert getattr(loaded, field) == getattr(affinity, field)
    for field in ("values", "standard_errors", "samples"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(affinity, field))
    np.testing.assert_array_equal(loaded.reliability.ceiling, affinity.reliability.ceiling)


def test_pass_through_of_a_block_is_no_feature() -> None:
    """The second stage only hands on what the first made, so it falls back to what is alive."""
    networks = {f"task{seed}": Staged(small_cnn(seed).stages[0], Block(nn.Identity())) for seed in range(2)}
    values = rsa(networks, images(12)).values
    np.testing.assert_array_equal(values[0], values[1])
