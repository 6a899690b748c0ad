"""Distillation on the GPU: as on the CPU, with teachers elsewhere, and resumed where it was interrupted."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import branchnet
from branchnet.training import History, Teachers
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.groups import Group
from branchnet.training.optimization.loop import optimize
from branchnet.training.optimization.objective import Objective
from branchnet.training.optimization.run_settings import Settings
from tests.gpu.toys import TASKS, branched, images, networks

X = images(64, seed=9)

LAST: dict[str, Any] = {"learning_rate": 1e-3, "keep": "last"}
"""No rates are tried, and nothing is held out."""


def distilled(device: str, teachers_on: str, *, recorded_bytes: int = 2**31) -> branchnet.training.History:
    donors = {task: network.to(teachers_on) for task, network in networks().items()}
    network = branched(branchnet.Tree.shared(TASKS, 3)).to(device)
    teachers = Teachers(donors, X, recorded_bytes=recorded_bytes, progress=False)
    history = branchnet.distill(
        network, teachers, X, steps=30, batch_size=16, learning_rate=1e-2, keep="last", progress=False
    )
    assert {parameter.device.type for parameter in network.parameters()} == {device}
    assert {parameter.device.type for donor in donors.values() for parameter in donor.parameters()} == {teachers_on}
    return history


def test_distillation_takes_the_steps_that_it_takes_on_the_cpu(device: str) -> None:
    found, expected = distilled(device, device), distilled("cpu", "cpu")
    for task in TASKS:
        assert found.losses[task][0] == pytest.approx(expected.losses[task][0], rel=1e-3)
        assert found.losses[task][4] == pytest.approx(expected.losses[task][4], rel=5e-2)
    assert sum(found.losses[task][-1] for task in TASKS) < 0.9 * sum(found.losses[task][0] for task in TASKS)


@pytest.mark.parametrize("recorded_bytes", [0, 2**31])
def test_teachers_may_be_on_the_cpu(device: str, recorded_bytes: int) -> None:
    found = distilled(device, "cpu", recorded_bytes=recorded_bytes)
    assert found.losses["scene"][0] == pytest.approx(distilled(device, device).losses["scene"][0], rel=1e-3)


def test_the_generator_of_the_device_is_saved_too(device: str, tmp_path: Path) -> None:
    x, y = torch.rand(24, 5).to(device), torch.rand(24, 2).to(device)

    def trained(*, interrupt_at: int | None = None, checkpoint: Path | None = None) -> History:
        torch.manual_seed(7)
        network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)).to(device).train()
        steps = itertools.count()

        def losses(index: Tensor) -> Mapping[str, Tensor]:
            if next(steps) == interrupt_at:
                signal.raise_signal(signal.SIGINT)
            return {"a": (network(x[index]) - y[index]).square().mean()}

        return optimize(
            network,
            Objective(losses),
            [Group(list(network.parameters()), 1e-2)],
            Settings(steps=12, batch_size=8, seed=3, progress=False, checkpoint=checkpoint),
            draws=lambda: partial(sample_indices, samples=24, batch_size=8, seed=3),
        )

    expected = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(interrupt_at=4, checkpoint=tmp_path / "run.pt")
    assert trained(checkpoint=tmp_path / "run.pt").losses == expected.losses


@pytest.mark.parametrize("own", [False, True])
def test_training_on_a_loader_with_dropout_is_resumed_as_it_would_have_gone_on(
    device: str, own: bool, tmp_path: Path
) -> None:
    """Loaders draw random numbers at each epoch's start; those of the device's Dropout must not start again with it."""
    x, y = torch.rand(24, 5), torch.rand(24, 2)

    def trained(*, interrupt_at: int | None = None, checkpoint: Path | None = None) -> tuple[History, nn.Module]:
        generator = torch.Generator().manual_seed(1) if own else None
        loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)
        torch.manual_seed(7)
        network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)).to(device)
        steps = itertools.count()

        def interrupt(module: nn.Module, _: object) -> None:
            if module.training and next(steps) == interrupt_at:
                signal.raise_signal(signal.SIGINT)

        network.register_forward_pre_hook(interrupt)
        loss, options = nn.functional.mse_loss, {"steps": 12, "seed": 3, "progress": False, **LAST}
        return branchnet.fit(network, loader, loss, checkpoint=checkpoint, **options), network

    expected, network = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(interrupt_at=4, checkpoint=tmp_path / "run.pt")
    found, resumed = trained(checkpoint=tmp_path / "run.pt")
    assert found.resumed_at == 5 and found.losses == expected.losses
    assert all(map(torch.equal, resumed.parameters(), network.parameters()))


def test_the_masks_of_dropout_differ_between_epochs(device: str) -> None:
    """One batch an epoch and no learning: the loss changes with the mask alone."""
    network = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 2)).to(device)
    loader = DataLoader(TensorDataset(torch.rand(8, 5), torch.rand(8, 2)), 8, shuffle=True)
    options = {"steps": 6, "learning_rate": 0.0, "progress": False}
    history = branchnet.fit(network, loader, nn.functional.mse_loss, **options)
    assert len({round(value, 6) for value in history.losses["loss"]}) == 6
