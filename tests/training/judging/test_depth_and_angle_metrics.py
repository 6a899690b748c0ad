"""Depth errors, angles and R squared against numpy, scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import r2_score

from branchnet import training
from branchnet.errors import TrainingError
from tests.training.judging.test_ranking_and_region_metrics import value


def test_depth_errors_equal_their_formulas() -> None:
    generator = np.random.default_rng(0)
    target, output = generator.uniform(0.5, 9, (5, 1, 4, 4)), generator.uniform(0.5, 9, (5, 1, 4, 4))
    missing = target.copy()
    missing[0], missing[1, 0, 0, 0], missing[1, 0, 0, 1] = 0, np.nan, -1
    known = missing > 0
    found, wanted = output[known], target[known]
    tensors = torch.tensor(output), torch.tensor(missing)
    relative = np.mean(np.abs(found - wanted) / wanted)
    assert value(training.absolute_relative_error(), *tensors) == pytest.approx(100 * relative)
    assert value(training.log10_error(), *tensors) == pytest.approx(np.mean(np.abs(np.log10(found / wanted))))
    assert value(training.log_rmse(), *tensors) == pytest.approx(np.sqrt(np.mean(np.log(found / wanted) ** 2)))


def test_a_depth_below_zero_is_a_large_error_and_no_nan() -> None:
    assert value(training.log10_error(), torch.tensor([-1.0]), torch.tensor([1.0])) == pytest.approx(6.0)


@pytest.mark.parametrize("count", [10, 11])
def test_angles_equal_those_of_scipys_rotations(count: int) -> None:
    rotations = Rotation.random(count, np.random.default_rng(count))
    target = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64).expand(count, 3)
    output = torch.tensor(rotations.apply(target.numpy()))
    angles = np.degrees(np.arccos(np.clip(rotations.as_matrix()[:, 2, 2], -1, 1)))
    assert value(training.mean_angle(), output, target) == pytest.approx(angles.mean())
    assert value(training.median_angle(), output, target) == pytest.approx(np.median(angles), abs=6e-4)
    for bound in (11.25, 22.5, 30, 90):
        assert value(training.share_within_angle(bound), output, target) == pytest.approx(100 * np.mean(angles < bound))


def test_pixels_without_a_normal_do_not_count() -> None:
    target = torch.zeros(1, 3, 2, 2)
    target[:, 2, 0, 0] = 1
    output = torch.randn(1, 3, 2, 2)
    output[0, :, 0, 0] = torch.tensor([0.0, 1.0, 1.0])
    assert value(training.median_angle(), output, target) == pytest.approx(45, abs=1e-3)
    with pytest.raises(TrainingError, match="every target is missing"):
        value(training.median_angle(), output, torch.zeros(1, 3, 2, 2))


def test_r_squared_equals_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert value(training.r_squared(), output, target) == pytest.approx(r2_score(target, output))


def test_a_bound_that_is_no_angle_is_refused() -> None:
    with pytest.raises(TrainingError, match="degrees=0"):
        training.share_within_angle(0)


def test_explained_direction_is_100_for_the_same_directions_and_0_for_the_best_constant() -> None:
    generator = np.random.default_rng(0)
    target, output = generator.normal(0.4, 1, (9, 3, 5)), generator.normal(size=(9, 3, 5))
    wanted, found = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (target, output))
    mean = wanted.mean((0, 2))
    constant = 1 - np.einsum("bcp,c->bp", wanted, mean / np.linalg.norm(mean)).mean()
    error = 1 - (wanted * found).sum(1).mean()
    metric = training.explained_direction()
    assert value(metric, torch.tensor(2 * output), torch.tensor(target)) == pytest.approx(100 * (1 - error / constant))
    assert value(metric, torch.tensor(target), torch.tensor(5 * target)) == pytest.approx(100)
    answer = torch.tensor(mean)[None, :, None].expand(9, 3, 5)
    assert value(metric, answer, torch.tensor(target)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(TrainingError, match="the same direction for all 45 vectors"):
        value(metric, torch.tensor(output), answer)
