"""Averages of the weights: those of torch's AveragedModel in a plain loop, and what is measured and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import branchnet
from branchnet.errors import CheckpointError, TrainingError
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.schedules import cosine

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).square()
DECAY = 0.8
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "progress": False, "clip": None}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))


def test_the_network_ends_with_the_averages_of_a_plain_loop() -> None:
    net, plain, steps = network(), network().train(), 12

    def averaged(average: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        decay = min(DECAY, float(count) / (9 + float(count)))
        return decay * average + (1 - decay) * new

    # Its first update copies the weights, which is that before training here.
    average = AveragedModel(plain, avg_fn=averaged, use_buffers=True)
    average.update_parameters(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=1e-4)
    for step in range(steps):
        index = sample_indices(step, len(X), 8, 0)
        optimizer.param_groups[0]["lr"] = 1e-2 * cosine(step, steps)
        optimizer.zero_grad()
        F.mse_loss(plain(X[index]), Y[index]).backward()
        optimizer.step()
        average.update_parameters(plain)
    branchnet.fit(net, (X, Y), nn.MSELoss(), steps=steps, keep="last", ema=DECAY, **SETTINGS)
    for (name, found), expected in zip(net.state_dict().items(), average.module.state_dict().values(), strict=True):
        if found.is_floating_point():
            torch.testing.assert_close(found, expected, msg=name)


def test_what_is_measured_and_kept_is_the_average_and_training_goes_on_from_the_weights() -> None:
    def train(ema: float | None, keep: Any) -> tuple[Any, nn.Module]:
        net = network()
        history = branchnet.fit(
            net, (X[:32], Y[:32]), nn.MSELoss(), validation=(X[32:], Y[32:]), steps=20, every=5, ema=ema, keep=keep,
            **SETTINGS,
        )  # fmt: skip
        return history, net

    with_average, net = train(0.9, "best")
    plain, _ = train(None, "best")
    assert with_average.losses == plain.losses
    assert with_average.measurements[0].losses == plain.measurements[0].losses
    assert with_average.measurements[-1].losses != plain.measurements[-1].losses
    for history, found in ((with_average, net), train(0.9, "last")):
        with torch.no_grad():
            assert float(F.mse_loss(found(X[32:]), Y[32:])) == pytest.approx(history.after["loss"], rel=1e-5)


def test_a_checkpoint_keeps_the_average_and_belongs_to_its_decay(tmp_path: Path) -> None:
    def train(net: nn.Module, steps: int, ema: float = 0.9) -> None:
        branchnet.fit(
            net, (X, Y), nn.MSELoss(), steps=steps, ema=ema, checkpoint=tmp_path / "run", schedule="constant",
            **SETTINGS,
        )  # fmt: skip

    whole, resumed = network(), network()
    train(whole, 12)
    (tmp_path / "run").unlink()
    train(network(), 5)
    train(resumed, 12)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    with pytest.raises(CheckpointError):
        train(network(), 12, ema=0.99)


@pytest.mark.parametrize("ema", [0, 1, 1.5, True, "0.9"])
def test_a_decay_is_between_0_and_1(ema: Any) -> None:
    with pytest.raises(TrainingError, match="expected a decay between 0 and 1"):
        branchnet.fit(network(), (X, Y), nn.MSELoss(), steps=1, ema=ema, progress=False)
