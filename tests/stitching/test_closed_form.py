"""The fitted maps against numpy's least squares and against known maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import branchnet
from branchnet.stitching import MomentSums, fit_maps, stitch_costs
from branchnet.stitching.closed_form import LARGEST_SIZE


def fits(x, y, **options):
    sums = MomentSums()
    for one, other in zip(torch.tensor(x).split(17), torch.tensor(y).split(17), strict=True):
        sums.add([one, other], [(0, 0), (0, 1)])
    return {fit.method: fit for fit in fit_maps(sums.moments(0, 1), **options)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_ridge_is_numpys_least_squares_with_rows_for_the_ridge(seed, sources, targets):
    random = np.random.default_rng(seed)
    x = random.normal(3, 2, (60, sources))
    y = x @ random.normal(size=(sources, targets)) + random.normal(size=(60, targets))
    fit = fits(x, y)["ridge"]
    centred = x - x.mean(0)
    rows = np.sqrt(1e-3 * centred.var(0).mean() * len(x)) * np.eye(sources)
    wanted, *_ = np.linalg.lstsq(
        np.vstack([centred, rows]), np.vstack([y - y.mean(0), np.zeros((sources, targets))]), rcond=None
    )
    np.testing.assert_allclose(fit.weight, wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fit.bias, y.mean(0) - x.mean(0) @ wanted, rtol=1e-8, atol=1e-8)
    residual = y - x @ wanted - fit.bias.numpy()
    assert fit.r2 == pytest.approx(1 - residual.var(0).sum() / y.var(0).sum(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_moments_that_are_merged_are_those_of_all_positions(seed, empty):
    random = np.random.default_rng(seed)
    x, y = random.normal(50, 2, (60, 4)), random.normal(size=(60, 3))
    parts = [np.arange(60)[k::4] for k in range(4)]
    parts[empty] = parts[empty][:0]
    merged = MomentSums()
    for part in parts:
        sums = MomentSums()
        if len(part):
            sums.add([torch.tensor(x[part]), torch.tensor(y[part])], [(0, 0), (0, 1)])
        merged.merge(sums)
    kept = np.concatenate(parts)
    found, wanted = merged.moments(0, 1), np.cov(x[kept], y[kept], rowvar=False, bias=True)
    assert found.count == len(kept)
    np.testing.assert_allclose(found.mean_x, x[kept].mean(0))
    np.testing.assert_allclose(found.mean_y, y[kept].mean(0), atol=1e-12)
    np.testing.assert_allclose(found.cov_x, wanted[:4, :4], atol=1e-11)
    np.testing.assert_allclose(found.cov_xy, wanted[:4, 4:], atol=1e-11)
    np.testing.assert_allclose(found.var_y, wanted[4:, 4:].diagonal(), atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_variance_matched_maps_give_the_targets_deviations(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(200, 5)) * random.uniform(0.5, 3, 5) + 4
    y = x @ random.normal(size=(5, 3)) + random.normal(size=(200, 3)) - 7
    found = fits(x, y)
    matched = x @ found["variance-matched"].weight.numpy() + found["variance-matched"].bias.numpy()
    np.testing.assert_allclose(matched.std(0), y.std(0), rtol=1e-9)
    np.testing.assert_allclose(matched.mean(0), y.mean(0), rtol=1e-9)
    between = x @ found["half-way"].weight.numpy()
    least = x @ found["ridge"].weight.numpy()
    np.testing.assert_allclose(between.std(0), np.sqrt(y.std(0) * least.std(0)), rtol=1e-9)


def test_an_affine_map_is_found_again():
    random = np.random.default_rng(0)
    x, weight, bias = random.normal(size=(300, 8)), random.normal(size=(8, 5)), random.normal(size=5)
    for fit in fits(x, x @ weight + bias).values():
        np.testing.assert_allclose(fit.weight, weight, atol=1e-9)
        np.testing.assert_allclose(fit.bias, bias, atol=1e-9)
        assert fit.r2 == pytest.approx(1, abs=1e-12)
        assert fit.factors is None


def test_constant_features_are_mapped_to_the_targets_mean():
    random = np.random.default_rng(0)
    y = random.normal(size=(50, 3))
    for fit in fits(np.full((50, 4), 2.5), y).values():
        assert not fit.weight.any()
        np.testing.assert_allclose(fit.bias, y.mean(0))
        assert fit.r2 == 0


def test_moments_of_features_far_from_0_lose_no_digits():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3))
    near, far = fits(x, x[:, :2])["ridge"], fits(x + 1e7, x[:, :2] - 1e7)["ridge"]
    np.testing.assert_allclose(far.weight, near.weight, atol=1e-7)


def test_a_large_map_gets_the_rank_that_its_outputs_have():
    random = np.random.default_rng(0)
    channels = int(LARGEST_SIZE**0.5) + 10
    hidden = random.normal(size=(900, 7))
    x = hidden @ random.normal(size=(7, channels)) + 0.01 * random.normal(size=(900, channels))
    y = hidden @ random.normal(size=(7, channels))
    fit = fits(x, y)["ridge"]
    assert fit.factors is not None
    assert fit.factors[0].shape[1] <= 7
    np.testing.assert_allclose(fit.factors[0] @ fit.factors[1], fit.weight, atol=1e-9)
    assert fit.r2 > 0.98


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.integers(380, 600))
def test_no_map_holds_more_numbers_than_a_search_counts(seed, channels):
    random = np.random.default_rng(seed)
    x = random.normal(size=(700, channels))
    fit = fits(x, random.normal(size=(700, channels)))["ridge"]
    numbers = sum(factor.numel() for factor in fit.factors)
    network = torch.nn.Sequential(torch.nn.Linear(3, channels), torch.nn.Tanh(), torch.nn.Linear(channels, 2))
    counted = stitch_costs(branchnet.split(network.eval(), torch.zeros(2, 3), locations=["1"]))
    assert numbers + channels <= counted["params"][0] <= LARGEST_SIZE + channels
    assert counted["flops"][0] == counted["params"][0] - channels  # one position
