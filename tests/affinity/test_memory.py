"""Streaming in passes, low precision and feature slices change results by no more than they say."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from branchnet.affinity import cka, compare_rdms, pwcca, rdm, rsa
from branchnet.affinity.keeping import Keeper
from branchnet.affinity.memory import Piece, plan_passes
from branchnet.errors import AffinityError

from .toys import Staged, images, small_cnn

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


class Buffered(nn.Module):
    """Writes every result to the same memory; a batch of eight, and no smaller one, in place of its input."""

    def __init__(self, reuses: bool) -> None:
        super().__init__()
        self.results: dict[int, torch.Tensor] = {}
        self.reuses = reuses

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if not self.reuses:
            return (x.mul_(2) if len(x) == 8 else x * 2,)
        kept = self.results.setdefault(len(x), torch.empty_like(x))
        return (torch.from_numpy(np.multiply(x.numpy(), 2, out=kept.numpy())),)


class Inplace(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x.sub_(x.mean(dim=(2, 3), keepdim=True)).abs_(),)


@pytest.mark.parametrize(
    ("last", "again"), [(Inplace(), False), (Buffered(reuses=False), True), (Buffered(reuses=True), True)]
)
def test_networks_that_overwrite_what_they_returned(
    last: nn.Module, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Features count as they were when their stage returned them; in place where seen beforehand, else in a rerun."""
    probe = images(16)
    tasks = range(2)
    networks = {f"task{seed}": Staged(*small_cnn(seed).stages[:1], last, last) for seed in tasks}
    with caplog.at_level(logging.INFO, "branchnet"):
        found = rsa(networks, probe, batch_size=8, bootstrap=0).values
    assert ("read again" in caplog.text) == again
    for location in range(3):
        tables = []
        for network in networks.values():
            parts = []
            for start in (0, 8):
                cut = (probe[start : start + 8].clone(),)
                with torch.no_grad():
                    for stage in network.eval().stages[: location + 1]:
                        cut = (stage(*cut)[0].clone(),)
                parts.append(cut[0].flatten(1))
            tables.append(torch.cat(parts))
        expected = compare_rdms([rdm(table) for table in tables])[0, 1]
        np.testing.assert_allclose(found[location, 0, 1], expected, atol=1e-10)


def test_slice_of_something_large_does_not_keep_it() -> None:
    piece = Piece(0, 0, 3, 0, 3)
    keeper = Keeper([piece], torch.float32, copied=False)
    large = torch.randn(5, 100)
    keeper.keep(0, large[:, :3], 0)
    keeper.keep(0, large.t()[:5, :3], 1)
    assert all(part.untyped_storage().nbytes() == 5 * 3 * 4 for part in keeper.kept[0])
    large.zero_()
    assert keeper.intact
    assert keeper.kept[0][0].abs().sum() > 0
