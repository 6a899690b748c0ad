"""Streaming in passes, low precision and feature slices change results by no more than they say."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from branchnet.affinity import cka, compare_rdms, pwcca, rdm, rsa
from branchnet.affinity.features.feature_buffer import Keeper
from branchnet.affinity.features.memory_plan import Chunk, default_limit, plan_passes
from branchnet.errors import AffinityError
from tests.affinity.toys import Staged, given, images, rows, small_cnn

INPUTS = 40
WIDTHS = (6 * 8 * 8, 12 * 3 * 3, 6)


def networks() -> dict[str, torch.nn.Module]:
    return {f"task{seed}": small_cnn(seed, dtype=torch.float32) for seed in range(3)}


@pytest.mark.parametrize("numbers", [INPUTS * WIDTHS[0], INPUTS * 100, INPUTS * 7])
def test_passes_change_nothing(numbers: int, caplog: pytest.LogCaptureFixture) -> None:
    doubles = {task: network.double() for task, network in networks().items()}
    exact = rsa(doubles, images(INPUTS), bootstrap=0)
    with caplog.at_level(logging.INFO, "branchnet"):
        limited = rsa(doubles, images(INPUTS), bootstrap=0, memory_limit=8 * numbers)
    assert f"in {-(-INPUTS * sum(WIDTHS) // numbers)} pass(es)" in caplog.text
    np.testing.assert_allclose(limited.values, exact.values, atol=1e-9)


def wide(offset: float, width: int, seed: int) -> dict[str, torch.nn.Module]:
    """Three networks that agree in part, every feature of unit spread about an offset of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    shared = draw(INPUTS, 16)
    tables = [shared @ draw(16, width) / 4 + draw(INPUTS, width) * 0.7 + offset * draw(1, width) for _ in range(3)]
    return {f"task{index}": given(table) for index, table in enumerate(tables)}


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("width", [4096, 20_000])
@pytest.mark.parametrize("passes", [1, 3])
def test_rounded_features_keep_the_stated_tolerance(
    offset: float, width: int, passes: int, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        with caplog.at_level(logging.INFO, "branchnet"):
            whole, rounded = (
                rsa(wide(offset, width, seed), rows(INPUTS), bootstrap=0, memory_limit=limit).values
                for limit in (None, 2 * INPUTS * width // passes + 100)
            )
        assert f"1 of 1 tensors are kept as bfloat16, in {passes} pass(es)" in caplog.text
        assert 0 < np.abs(rounded - whole).max() < 1e-3


@pytest.mark.parametrize(("measure", "tolerance"), [(rsa, 1e-5), (cka, 1e-5), (partial(pwcca, variance=0.5), 1e-5)])
def test_slices_give_what_one_pass_gives(measure, tolerance: float) -> None:
    """In half precision from the start, so that only the division into passes differs."""
    halves = {task: network.bfloat16() for task, network in networks().items()}
    probe = images(INPUTS, dtype=torch.bfloat16)
    whole = measure(halves, probe, bootstrap=0)
    sliced = measure(halves, probe, bootstrap=0, memory_limit=2 * INPUTS * 50)
    np.testing.assert_allclose(sliced.values, whole.values, atol=tolerance)


def test_plan_fills_passes_and_covers_everything_once() -> None:
    widths = (10_000, 5_000, 30, 7)
    chunks = [Chunk(d, 0, width, 0, width) for d, width in enumerate(widths)]
    passes = plan_passes(chunks, inputs=10, limit=10 * 8_000)
    assert all(sum(piece.width * piece.kept_as.itemsize for piece in one) <= 8_000 for one in passes)
    assert {piece.location for one in passes for piece in one if piece.rounded} == {0, 1}
    covered = [(piece.location, index) for one in passes for piece in one for index in range(piece.start, piece.stop)]
    assert sorted(covered) == [(d, index) for d, width in enumerate(widths) for index in range(width)]
    assert len(passes) == 4


def test_rounded_features_are_cached_apart(tmp_path: Path) -> None:
    content = wide(1.0, 5_000, 0)
    rounded, again = (rsa(content, rows(INPUTS), memory_limit=500_000, cache=tmp_path).values for _ in range(2))
    np.testing.assert_array_equal(again, rounded)
    assert len(list(tmp_path.iterdir())) == 3
    exact = rsa(content, rows(INPUTS), cache=tmp_path).values
    assert not np.array_equal(exact, rounded)
    np.testing.assert_array_equal(exact, rsa(content, rows(INPUTS)).values)
    assert len(list(tmp_path.iterdir())) == 6


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
    large = torch.randn(5, 100)
    keeper = Keeper([Chunk(0, 0, 3, 0, 3)], [large[0, :3]], copied=False)
    keeper.keep(0, large[:, :3], 0)
    keeper.keep(0, large.t()[:5, :3], 1)
    assert keeper.intact
    (kept,) = keeper.take()
    assert all(part.untyped_storage().nbytes() == 5 * 3 * 4 for part in kept.batches)
    large.zero_()
    assert kept.batches[0].abs().sum() > 0


def test_free_memory_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither /proc nor os.sysconf; the reply is laid out in memory as the Windows API documents MEMORYSTATUSEX."""

    def global_memory_status(pointer: Any) -> int:
        status = pointer._obj
        assert ctypes.sizeof(status) == status.length == 64
        reply = struct.pack("<IIQQQQQQQ", 64, 30, 8_000_000, 3_000_000, 9, 9, 9, 9, 0)
        ctypes.memmove(ctypes.addressof(status), reply, 64)
        return 1

    windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=global_memory_status))
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    assert default_limit(torch.device("cpu")) == 1_500_000
    windll.kernel32.GlobalMemoryStatusEx = lambda pointer: 0
    with pytest.raises(AffinityError, match="expected memory_limit="):
        default_limit(torch.device("cpu"))
