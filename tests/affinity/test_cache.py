"""The cache on disk: what is new is computed, what is damaged is noticed, what runs beside it is not lost."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from branchnet.affinity import rsa
from branchnet.errors import AffinityError
from tests.affinity.toys import Block, Staged, images, small_cnn


class Counting(nn.Module):
    """A stage that counts the inputs it sees."""

    seen = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        Counting.seen += len(x)
        return (x * 1,)


def counted(seed: int) -> Staged:
    return Staged(Counting(), *small_cnn(seed).stages)


def inputs_seen(networks: dict[str, Staged], folder: Path, probe: torch.Tensor, **options) -> int:
    Counting.seen = 0
    rsa(networks, probe, cache=folder, bootstrap=0, **options)
    return Counting.seen


def test_only_what_is_new_is_computed(tmp_path: Path) -> None:
    networks = {f"task{seed}": counted(seed) for seed in range(2)}
    one_network = 12 + 2
    assert inputs_seen(networks, tmp_path, images(12)) == 2 * one_network
    assert inputs_seen(networks, tmp_path, images(12)) == 0
    assert inputs_seen(networks, tmp_path, images(12), batch_size=5) == 0
    assert inputs_seen(networks | {"new": counted(9)}, tmp_path, images(12)) == one_network
    assert inputs_seen(networks, tmp_path, images(12, seed=1)) == 2 * one_network
    with torch.no_grad():
        networks["task0"].stages[3].inner[0].bias += 1
    assert inputs_seen(networks, tmp_path, images(12)) == one_network
    networks["task1"].stages[2].inner[2] = nn.ReLU()
    assert inputs_seen(networks, tmp_path, images(12)) == one_network


def test_settings_are_told_apart(tmp_path: Path) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    plain = rsa(networks, images(12), cache=tmp_path)
    for options in ({"dissimilarity": "cosine"}, {"center": True}, {"features": lambda x: x[:, :3]}):
        cached = [rsa(networks, images(12), cache=tmp_path, **options).values for _ in range(2)]
        fresh = rsa(networks, images(12), **options).values
        np.testing.assert_array_equal(cached, [fresh, fresh])
        assert not np.array_equal(fresh, plain.values)


def test_damage_is_noticed_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    reference = rsa(networks, images(12), cache=tmp_path)
    entry = sorted(tmp_path.glob("*.rdm"))[0]
    content = bytearray(entry.read_bytes())
    content[-5] ^= 1
    entry.write_bytes(content)
    with caplog.at_level(logging.WARNING, "branchnet"):
        again = rsa(networks, images(12), cache=tmp_path)
    assert f"{entry} is damaged" in caplog.text
    np.testing.assert_array_equal(again.values, reference.values)
    caplog.clear()
    rsa(networks, images(12), cache=tmp_path)
    assert not caplog.text


@pytest.mark.parametrize("content", [b"", b"no array", "shape", "type"])
def test_an_entry_with_the_right_checksum_and_another_content_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | str
) -> None:
    networks = {f"task{seed}": small_cnn(seed) for seed in range(2)}
    reference = rsa(networks, images(12), cache=tmp_path)
    entry = sorted(tmp_path.glob("*.rdm"))[0]
    if isinstance(content, str):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(5 if content == "shape" else 66, float if content == "shape" else int))
        content = buffer.getvalue()
    entry.write_bytes(hashlib.blake2b(content, digest_size=32).digest() + content)
    with caplog.at_level(logging.WARNING, "branchnet"):
        again = rsa(networks, images(12), cache=tmp_path)
    assert f"{entry} is damaged" in caplog.text
    np.testing.assert_array_equal(again.values, reference.values)


def test_old_temporaries_of_killed_runs_are_removed_and_young_ones_stay(tmp_path: Path) -> None:
    for name in ("old", "young"):
        (tmp_path / f".branchnet-{name}.rdm").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / ".branchnet-old.rdm", (two_days_ago, two_days_ago))
    rsa({f"task{seed}": small_cnn(seed) for seed in range(2)}, images(12), cache=tmp_path)
    assert [path.name for path in tmp_path.glob(".branchnet-*")] == [".branchnet-young.rdm"]


def test_killed_run_resumes(tmp_path: Path) -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    broken = Staged(*small_cnn(5).stages[:3], Block(Failing()))
    with pytest.raises(KeyboardInterrupt):
        rsa({"done": counted(0), "killed": broken}, images(12), cache=tmp_path)
    assert inputs_seen({"done": counted(0)}, tmp_path, images(12)) == 0


def _run(folder: str, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    rsa({f"task{seed}": small_cnn(seed) for seed in seeds}, images(12), cache=folder)


def test_concurrent_runs_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_run, args=(str(tmp_path), seeds)) for seeds in ([0, 1], [1, 0])]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert len(list(tmp_path.glob("*.rdm"))) == 2 * 3
    assert len(list(tmp_path.iterdir())) == 2 * 3


def test_function_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    first = 2
    with pytest.raises(AffinityError, match="without closure"):
        rsa({"a": small_cnn(0)}, images(5), cache=tmp_path, features=lambda x: x[:, :first])


class Slow(nn.Module):
    """Says that it runs, and then never ends."""

    def __init__(self, sign: str) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Path(self.sign).touch()
        while True:
            time.sleep(0.1)


def _run_until_killed(folder: str, sign: str) -> None:
    torch.set_num_threads(1)
    rsa({"done": counted(0), "slow": Staged(*counted(5).stages[:3], Block(Slow(sign)))}, images(12), cache=folder)


def test_process_that_is_killed_loses_no_finished_network(tmp_path: Path) -> None:
    folder, sign = tmp_path / "cache", tmp_path / "running"
    process = multiprocessing.get_context("spawn").Process(target=_run_until_killed, args=(str(folder), str(sign)))
    process.start()
    while not sign.exists():
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert inputs_seen({"done": counted(0)}, folder, images(12)) == 0
    assert inputs_seen({"done": counted(0), "slow": counted(5)}, folder, images(12)) == 12 + 2
