"""Metrics in which a constant answer counts as nothing, against scikit-learn and plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from branchnet import training
from branchnet.errors import TrainingError
from branchnet.training import Metric


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def value(metric: Metric, output: Tensor, target: Tensor) -> float:
    return metric.result(metric.sums(output, target))


def explained(output: Tensor, target: Tensor) -> float:
    """100 (1 - KL to the output / KL to the mean distribution), each sample's divergence by scipy."""
    found, wanted = softmax(output.double().numpy(), 1), softmax(target.double().numpy(), 1)
    mean = np.broadcast_to(wanted.mean(0), wanted.shape)
    return float(100 * (1 - rel_entr(wanted, found).sum() / rel_entr(wanted, mean).sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 7), st.integers(0, 2**16), st.floats(0.05, 4.0))
def test_explained_divergence_is_the_formula(samples: int, classes: int, seed: int, scale: float) -> None:
    output, target = scale * random(samples, classes, seed=seed), random(samples, classes, seed=seed + 1)
    assert value(training.explained_divergence(), output, target) == pytest.approx(explained(output, target), rel=1e-5)


def test_explained_divergence_is_100_for_equal_outputs_and_0_for_the_best_constant() -> None:
    target = 3 * random(50, 4)
    constant = target.softmax(1).mean(0, keepdim=True).log().expand(50, 4)
    metric = training.explained_divergence()
    assert value(metric, target + 5, target) == pytest.approx(100, abs=1e-4)
    assert value(metric, constant, target) == pytest.approx(0, abs=1e-4)
    assert value(metric, torch.zeros(50, 4), target) < 0  # no other constant is as good
    batches = [metric.sums(constant[rows], target[rows]) for rows in (slice(0, 7), slice(7, 50))]
    assert metric.result(batches[0] + batches[1]) == pytest.approx(0, abs=1e-4)


def test_explained_divergence_counts_pixels_and_leaves_missing_targets_out() -> None:
    output, target = random(3, 4, 5, 6), random(3, 4, 5, 6, seed=1)
    rows = [x.movedim(1, -1).reshape(-1, 4) for x in (output, target)]
    metric = training.explained_divergence()
    assert value(metric, output, target) == pytest.approx(explained(*rows), rel=1e-5)
    target[1] = math.nan
    known = [x[[0, 2]].movedim(1, -1).reshape(-1, 4) for x in (output, target)]
    assert value(metric, output, target) == pytest.approx(explained(*known), rel=1e-5)


def test_explained_divergence_refuses_targets_that_say_nothing() -> None:
    metric = training.explained_divergence()
    with pytest.raises(TrainingError, match="same distribution for all 5 samples"):
        value(metric, random(5, 3), random(1, 3).expand(5, 3))
    with pytest.raises(TrainingError, match="every target is missing"):
        value(metric, random(5, 3), torch.full((5, 3), math.nan))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 2**16))
def test_kappa_equals_sklearn(samples: int, classes: int, seed: int) -> None:
    output, target = random(samples, classes, seed=seed), random(samples, classes, seed=seed + 1)
    ones, others = output.argmax(1), target.argmax(1)
    if len(set(ones.tolist()) | set(others.tolist())) == 1:
        return  # sklearn divides by 0
    expected = 100 * cohen_kappa_score(ones, others)
    assert value(training.cohen_kappa(), output, target) == pytest.approx(expected, abs=1e-9)


def test_a_constant_answer_agrees_often_and_has_kappa_0() -> None:
    target = torch.eye(2)[[0] * 9 + [1]]
    constant = torch.eye(2)[[0] * 10]
    assert value(training.top1_agreement(), constant, target) == pytest.approx(90)
    assert value(training.cohen_kappa(), constant, target) == pytest.approx(0, abs=1e-12)
    assert value(training.cohen_kappa(), target, target) == pytest.approx(100)
    assert value(training.cohen_kappa(), constant, constant) == 0  # equal, and no better than chance
    assert value(training.cohen_kappa(), 1 - constant, constant) == pytest.approx(0)


def test_kappa_is_the_same_batch_by_batch_and_for_pixels() -> None:
    output, target = random(6, 3, 4, 5), random(6, 3, 4, 5, seed=1)
    metric = training.cohen_kappa()
    whole = 100 * cohen_kappa_score(output.argmax(1).flatten(), target.argmax(1).flatten())
    parts = sum(metric.sums(output[rows], target[rows]) for rows in (slice(0, 1), slice(1, 6)))
    assert metric.result(parts) == pytest.approx(whole, abs=1e-9)
