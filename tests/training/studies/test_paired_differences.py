import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from branchnet.training.studies.paired_differences import crossed_estimate


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (5, 1, 1)])
def test_one_dimension_gives_the_interval_of_a_paired_t_test(shape):
    numbers = np.random.default_rng(0).normal(1, 2, 5)
    found = crossed_estimate(numbers.reshape(shape))
    wanted = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(numbers.mean())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.certain == (stats.ttest_1samp(numbers, 0).pvalue < 0.05)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        seeds, trees = generator.normal(0, 1, (4, 1)), generator.normal(0, 1, (1, 6))
        found = crossed_estimate(2 + seeds + trees + generator.normal(0, 1, (4, 6)))
        held += found.low <= 2 <= found.high
    assert held / 400 >= 0.93  # 0.95 less two standard errors of 400 draws


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4))
def test_the_order_of_seeds_and_trees_does_not_matter(seed, seeds, trees):
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(seeds, trees))
    shuffled = numbers[generator.permutation(seeds)][:, generator.permutation(trees)]
    one, other = crossed_estimate(numbers), crossed_estimate(shuffled)
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high), nan_ok=True)
    assert math.isnan(one.low) == (seeds == trees == 1)


def test_equal_differences_leave_no_doubt():
    found = crossed_estimate(np.full((3, 2), 1.5))
    assert (found.mean, found.low, found.high) == (1.5, 1.5, 1.5)
