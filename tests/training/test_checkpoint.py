"""Checkpoints: every kind of damage is named before anything changes; what differs is named; runs can be extended."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet.errors import BranchnetError, CheckpointError, TrainingError
from branchnet.training import History
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.resuming.checkpoint import digest
from branchnet.training.resuming.checkpoint_file import read_nested

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


def network(seed: int = 7) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))


def train(net: nn.Module, file: Path | None, *, steps: int = 6, **others: Any) -> History:
    given: dict[str, Any] = {"images": X, "labels": Y, "losses": F.mse_loss, "keep": "last"} | others
    images, labels, losses = (given.pop(name) for name in ("images", "labels", "losses"))
    return branchnet.fit(
        net, (images, labels), losses,
        steps=steps, batch_size=8, learning_rate=1e-2, seed=3, checkpoint=file, progress=False, **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A finished run of six steps, as bytes."""
    file = tmp_path_factory.mktemp("run") / "run.pt"
    train(network(), file)
    return file.read_bytes()


@pytest.fixture
def file(written: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "run.pt"
    path.write_bytes(written)
    return path


@pytest.mark.parametrize(
    ("others", "differs"),
    [
        ({"labels": Y + 1}, "labels"),
        ({"losses": F.l1_loss}, "losses"),
        ({"losses": lambda output, target: 3 * F.mse_loss(output, target)}, "losses"),
        ({"images": X + 1}, "samples"),
        ({"labels": -Y, "losses": F.l1_loss}, "losses and labels"),
    ],
)
def test_another_run_is_told_what_differs(file: Path, others: dict[str, Any], differs: str) -> None:
    with pytest.raises(CheckpointError, match=f"is of a run with other {differs}; expected those of this run"):
        train(network(), file, **others)


def test_other_weights_and_settings_are_named(file: Path) -> None:
    with pytest.raises(CheckpointError, match="other weights;"):
        train(network(8), file)
    with pytest.raises(CheckpointError, match="other settings;"):
        branchnet.fit(
            network(),
            (X, Y),
            F.mse_loss,
            steps=6,
            batch_size=4,
            keep="last",
            learning_rate=1e-2,
            checkpoint=file,
            progress=False,
        )


def test_a_finished_run_gives_its_result_until_the_file_is_removed(file: Path) -> None:
    expected, found = network(), network()
    losses = train(expected, None).losses
    history = train(found, file)
    assert history.resumed_at == 6 and history.losses == losses
    assert all(map(torch.equal, expected.parameters(), found.parameters()))
    assert file.exists()


def test_an_extended_run_goes_on_by_the_longer_schedule(file: Path) -> None:
    """AdamW in a plain loop, at the rates of a cosine over 6 steps, then at those of one over 10."""
    by_hand, found = network().train(), network()
    optimizer = torch.optim.AdamW(by_hand.parameters(), weight_decay=1e-4)
    for step in range(10):
        steps = 6 if step < 6 else 10
        rate = 1.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (steps - 1)))
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        index = sample_indices(step, 40, 8, 3)
        optimizer.zero_grad()
        F.mse_loss(by_hand(X[index]), Y[index]).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 5.0)
        optimizer.step()
    history = train(found, file, steps=10)
    assert history.resumed_at == 6 and len(history.losses["loss"]) == 10
    for one, other in zip(found.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(CheckpointError, match="of a run of 10 steps; expected at most steps=6"):
        train(network(), file)


def damaged(file: Path) -> None:
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(CheckpointError):
        train(net, file)
    assert all(map(torch.equal, net.parameters(), before))


def test_a_flipped_bit_in_any_stored_tensor_is_found(file: Path) -> None:
    content = read_nested(file)
    tensors: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                collect(one)

    collect(content)
    assert len(tensors) == 4 + 3 * 4 + 1
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        flat[-1] ^= 64
        torch.save(content, file)
        damaged(file)
        flat[-1] ^= 64
    torch.save(content, file)
    assert train(network(), file).resumed_at == 6


def test_any_byte_may_be_damaged(written: bytes, tmp_path: Path) -> None:
    """Either the file is refused, or nothing that matters was hit, and the run is the same."""
    file, generator = tmp_path / "run.pt", torch.Generator().manual_seed(0)
    expected = network()
    train(expected, None)
    refused = 0
    for _ in range(60):
        place, bit = (int(torch.randint(high, (), generator=generator)) for high in (len(written), 8))
        file.write_bytes(written[:place] + bytes([written[place] ^ (1 << bit)]) + written[place + 1 :])
        net = network()
        try:
            train(net, file)
        except CheckpointError:
            refused += 1
        else:
            assert all(map(torch.equal, net.parameters(), expected.parameters()))
    assert refused > 10


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1])
def test_cut_files_are_refused(file: Path, written: bytes, length: int) -> None:
    file.write_bytes(written[:length])
    damaged(file)


def resealed(content: dict[str, Any]) -> dict[str, Any]:
    """With a digest that fits, as somebody could write one on purpose."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return rest | {"digest": digest(rest)}


def with_other_averages(optimizer: dict[str, Any]) -> dict[str, Any]:
    state = {number: averages | {"exp_avg": torch.zeros(1, 7)} for number, averages in optimizer["state"].items()}
    return optimizer | {"state": state}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {},
        lambda content: [1, 2],
        lambda content: "text",
        lambda content: content | {"digest": None},
        lambda content: content | {"step": 5},
        lambda content: {name: value for name, value in content.items() if name != "digest"},
        lambda content: resealed(content | {"version": 4}),
        lambda content: resealed(content | {"version": "2"}),
        lambda content: resealed(content | {"run": None}),
        lambda content: resealed(content | {"run": {}}),
        lambda content: resealed(content | {"steps": "many"}),
        lambda content: resealed(content | {"steps": 5}),
        lambda content: resealed(content | {"run": {1: 2}}),
        lambda content: resealed(content | {"step": -1}),
        lambda content: resealed(content | {"step": "6"}),
        lambda content: resealed(content | {"step": 7}),
        lambda content: resealed(content | {"losses": {"loss": [1.0]}}),
        lambda content: resealed(content | {"losses": {"loss": [math.inf] * 6}}),
        lambda content: resealed(content | {"losses": []}),
        lambda content: resealed(content | {"module": {}}),
        lambda content: resealed(content | {"module": 3}),
        lambda content: resealed(content | {"optimizer": {}}),
        lambda content: resealed(content | {"optimizer": with_other_averages(content["optimizer"])}),
        lambda content: resealed(content | {"losses": {"loss": [10**400] * 6}}),
        lambda content: resealed(content | {"random": torch.zeros(3)}),
        lambda content: resealed({name: value for name, value in content.items() if name != "random"}),
    ],
)
def test_crafted_content_is_refused(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    torch.save(change(read_nested(file)), file)
    with pytest.raises(CheckpointError):
        train(network(), file)


def test_a_folder_and_a_file_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(network(), tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("branchnet.training.resuming.checkpoint.write_nested", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        train(network(), tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(TrainingError, match="checkpoint_seconds"):
        train(network(), tmp_path / "run.pt", checkpoint_seconds=seconds)


def test_errors_are_of_the_library() -> None:
    assert issubclass(CheckpointError, BranchnetError)
