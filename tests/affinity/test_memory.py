"""Streaming in passes, low precision and feature slices change results by no more than they say."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch

from branchnet.affinity import cka, pwcca, rsa
from branchnet.affinity.memory import Piece, plan_passes
from branchnet.errors import AffinityError

from .toys import images, small_cnn

INPUTS = 40
WIDTHS = (6 * 8 * 8, 12 * 3 * 3, 6)


def networks() -> dict[str, torch.nn.Module]:
    return {f"task{seed}": small_cnn(seed, dtype=torch.float32) for seed in range(3)}


@pytest.mark.parametrize("numbers", [INPUTS * sum(WIDTHS), INPUTS * WIDTHS[0], INPUTS * 100, INPUTS * 7])
def test_limits_stay_within_the_stated_tolerance(numbers: int, caplog: pytest.LogCaptureFixture) -> None:
    probe = images(INPUTS, dtype=torch.float32)
    exact = rsa(networks(), probe, bootstrap=0)
    with caplog.at_level(logging.INFO, "branchnet"):
        limited = rsa(networks(), probe, bootstrap=0, memory_limit=2 * numbers)
    assert "bfloat16" in caplog.text
    assert np.abs(limited.values - exact.values).max() < 0.01


@pytest.mark.parametrize(("measure", "tolerance"), [(rsa, 1e-5), (cka, 1e-5), (partial(pwcca, variance=0.5), 1e-5)])
def test_slices_give_what_one_pass_gives(measure, tolerance: float) -> None:
    """In half precision from the start, so that only the division into passes differs."""
    halves = {task: network.bfloat16() for task, network in networks().items()}
    probe = images(INPUTS, dtype=torch.bfloat16)
    whole = measure(halves, probe, bootstrap=0)
    sliced = measure(halves, probe, bootstrap=0, memory_limit=2 * INPUTS * 50)
    np.testing.assert_allclose(sliced.values, whole.values, atol=tolerance)


def test_plan_fills_passes_and_covers_everything_once() -> None:
    pieces = [Piece(d, 0, width, 0, width) for d, width in enumerate((100, 30, 7))]
    plan = plan_passes(pieces, torch.float32, inputs=10, limit=2 * 10 * 40)
    assert plan.dtype == torch.bfloat16
    assert all(sum(piece.width for piece in one) <= 40 for one in plan.passes)
    covered = [
        (piece.location, index) for one in plan.passes for piece in one for index in range(piece.start, piece.stop)
    ]
    assert sorted(covered) == [(d, index) for d, width in enumerate((100, 30, 7)) for index in range(width)]
    assert len(plan.passes) == 4


def test_impossible_limit_is_refused() -> None:
    with pytest.raises(AffinityError, match="memory_limit does not hold one feature"):
        rsa(networks(), images(INPUTS, dtype=torch.float32), memory_limit=10)
