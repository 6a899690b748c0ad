"""Thousands of damaged checkpoints: only the library's own errors get out, and no refused file has changed anything."""

from __future__ import annotations

import copy
import io
import random
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import CheckpointError, TrainingError
from branchnet.training.resuming.checkpoint_file import read_nested
from tests.damage import damaged
from tests.training.test_checkpoint import network, resealed, train

JUNK: tuple[Any, ...] = (
    *(None, True, -1, 7, 2**70, 1e308, float("nan"), "", "step", b"\0", [], {}, (), {"a": 1}, [1.0] * 6),
    *(torch.zeros(0), torch.full((8, 5), torch.nan), torch.ones(1, dtype=torch.int8), torch.zeros(3, 1, 2)),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A finished run of six steps, as bytes."""
    file = tmp_path_factory.mktemp("run") / "run.pt"
    train(network(), file)
    return file.read_bytes()


def content_of(file: bytes) -> Any:
    """What a checkpoint holds."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").write_bytes(file)
        return read_nested(Path(folder) / "run")


def with_damaged_member(content: bytes, count: int) -> Iterator[bytes]:
    """The pickle of an archive, as 0.1.0 wrote them, damaged and packed again, so that its checksum fits."""
    saved = io.BytesIO()
    torch.save(content_of(content), saved)
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in members if name.endswith("data.pkl"))
    for other in damaged(members[pickle], count):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, other if name == pickle else member)
        yield packed.getvalue()


def with_other_values(content: bytes, count: int) -> Iterator[bytes]:
    """Some values replaced by junk, under a digest that fits."""
    chance = random.Random(1)
    for _ in range(count):
        stored = content_of(content)
        for _ in range(chance.choice((1, 1, 2))):
            holder: Any = stored
            while True:
                keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
                key = chance.choice(keys)
                if not isinstance(holder[key], dict | list) or not holder[key] or chance.random() < 0.2:
                    break
                holder = holder[key]
            holder[key] = copy.deepcopy(chance.choice(JUNK))  # which a later change may write into
        packed = io.BytesIO()
        torch.save(resealed(stored), packed)  # which takes any junk
        yield packed.getvalue()


def with_damaged_header(content: bytes, count: int) -> Iterator[bytes]:
    """The JSON text that says where each tensor belongs damaged, and its length mended."""
    size = int.from_bytes(content[:8], "little")
    for other in damaged(content[8 : 8 + size], count):
        yield len(other).to_bytes(8, "little") + other + content[8 + size :]


KINDS: dict[str, Callable[[bytes, int], Iterator[bytes]]] = {
    "bytes": damaged,
    "header": with_damaged_header,
    "pickle": with_damaged_member,
    "values": with_other_values,
}


def same(one: list[Tensor], net: nn.Module) -> bool:
    return all(map(torch.equal, one, net.parameters()))


def refused_or_harmless(written: bytes, folder: Path, kind: str, count: int) -> None:
    """Where a file is refused the network is as before; else, where bytes alone were damaged, as after the whole run.

    A run with other values goes on for a step more, which takes them up.
    """
    file, final = folder / "run.pt", network()
    train(final, None)
    steps = 7 if kind == "values" else 6
    expected, refused = list(final.parameters()), 0
    for content in KINDS[kind](written, count):
        file.write_bytes(content)
        net = network()
        before = [parameter.clone() for parameter in net.parameters()]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train(net, file, steps=steps)
        except CheckpointError:
            refused += 1
            assert same(before, net)
        except TrainingError as error:
            assert kind == "values" and "became" in str(error)
        else:
            assert kind == "values" or same(expected, net)
    assert refused > count // 10


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoints_raise_only_our_errors(written: bytes, tmp_path: Path, kind: str) -> None:
    refused_or_harmless(written, tmp_path, kind, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("bytes", 2000), ("header", 1000), ("pickle", 1000), ("values", 1000)])
def test_five_thousand_damaged_checkpoints(written: bytes, tmp_path: Path, kind: str, count: int) -> None:
    refused_or_harmless(written, tmp_path, kind, count)
