"""Weights on disk: round trips, ties, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from branchnet.deploy import load_weights, save_weights
from branchnet.errors import CheckpointError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.decode = nn.Linear(3, 5, bias=False)
        self.decode.weight = self.embed.weight


def test_round_trip_keeps_values_and_ties(tmp_path: Path) -> None:
    first, second = Tied(), Tied()
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert second.decode.weight is second.embed.weight
    assert (tmp_path / "w.safetensors").stat().st_size < 1200


def test_a_tied_tensor_may_be_stored_under_any_of_its_names(tmp_path: Path) -> None:
    net = Tied()
    stored = {name: tensor + 1 for name, tensor in net.state_dict().items() if name != "embed.weight"}
    save_file(stored, tmp_path / "w.safetensors")
    load_weights(net, tmp_path / "w.safetensors")
    assert torch.equal(net.embed.weight, stored["decode.weight"])


def test_a_file_that_does_not_fit_names_every_difference_and_changes_nothing(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    save_file({"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "weight: expected (2, 3) float32, found (2, 4) float32" in message
    assert "bias: not in the file" in message
    assert "extra: unknown tensor; expected those of the network" in message
    assert torch.equal(net.weight, before)


def test_a_dtype_is_widened_but_never_narrowed(tmp_path: Path) -> None:
    half = {"weight": torch.full((2, 3), 0.1).half(), "bias": torch.zeros(2).half()}
    save_file(half, tmp_path / "half.safetensors")
    net = nn.Linear(3, 2)
    load_weights(net, tmp_path / "half.safetensors")
    assert torch.equal(net.weight, half["weight"].float())
    save_weights(nn.Linear(3, 2), tmp_path / "single.safetensors")
    with pytest.raises(CheckpointError, match="expected \\(2, 3\\) float16, found \\(2, 3\\) float32"):
        load_weights(nn.Linear(3, 2).half(), tmp_path / "single.safetensors")


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(nn.Linear(3, 2), file)
    save_weights(nn.Linear(3, 2), file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_weights(nn.Linear(3, 2), file)
