"""A branched network trained by Lightning is what a plain loop makes of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import branchnet
from branchnet.errors import TrainingError
from branchnet.training import weighting_of
from branchnet.training.optimization.schedules import cosine
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators
from tests.training.frameworks.toys import LABELS, LOSSES, TASKS, X, branched, known_losses, same

define_torchvision_operators()
L = pytest.importorskip("lightning.pytorch")


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> Any:
        return X[number], {task: labels[number] for task, labels in LABELS.items()}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises more workers
        yield


def trainer(**settings: Any) -> Any:
    plain = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "barebones": False}
    return L.Trainer(**{**plain, "enable_progress_bar": False, "enable_model_summary": False, **settings})


def lightning(**settings: Any) -> Any:
    from branchnet.training import LightningBranched

    return LightningBranched(branched(), LOSSES, **settings)


def rate(node: Any) -> float:
    return 1e-2 if node.is_head else 3e-3


@pytest.mark.parametrize("weights", [None, "uncertainty", "famo", branchnet.training.Aggregate(lambda rows: rows[0])])
def test_three_steps_are_those_of_a_plain_loop(weights: Any) -> None:
    module = lightning(weights=weights, learning_rate=rate)
    trainer(max_steps=3).fit(module, DataLoader(Rows(), 4))
    expected = branched().train()
    weighting = weighting_of(weights, TASKS, expected)
    groups = [{"params": list(one.module.parameters()), "lr": rate(one)} for one in expected.members()]
    groups.append({"params": list(weighting.parameters()), "lr": 1e-3, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=1e-4)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(3):
        rows = torch.arange(4 * step, 4 * step + 4)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * cosine(step, 3)
        optimizer.zero_grad()
        weighting.backward(expected, known_losses(expected, rows))
        optimizer.step()
        weighting.after_step(lambda rows=rows: known_losses(expected, rows))
    assert same(module.network, expected)
    assert not module.network.training


def test_training_runs_in_training_mode_and_leaves_frozen_nodes_alone() -> None:
    module, modes = lightning(), []
    module.network.freeze("heads.1")
    trunk, frozen = module.network.nodes[0][0], module.network.heads[1]
    module.network.heads[0].register_forward_pre_hook(lambda *_: modes.append((trunk.training, frozen.training)))
    before = {name: value.clone() for name, value in trunk.named_buffers() if "running_mean" in name}
    module.network.eval()
    assert before
    trainer(max_steps=3, val_check_interval=1).fit(module, DataLoader(Rows(), 4), DataLoader(Rows(), 4))
    assert modes.count((True, False)) == 3
    assert set(modes) == {(True, False), (False, False)}  # validation in between, and a check before the first step
    after = dict(trunk.named_buffers())
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


def test_validation_logs_losses_and_metrics_over_the_samples_with_a_label() -> None:
    metric = branchnet.training.rmse()
    module = lightning(metrics={"a": metric})
    (found,) = trainer().validate(module, DataLoader(Rows(), 5), verbose=False)
    module.network.eval()
    with torch.no_grad():
        losses = known_losses(module.network, torch.arange(len(X)))
        outputs = module.network(X)["a"]
    known = ~LABELS["a"].isnan().any(1)
    for task in TASKS:
        assert found[f"validation/loss/{task}"] == pytest.approx(float(losses[task]), rel=1e-5)
    assert found["validation/loss"] == pytest.approx(float(sum(losses.values())) / 2, rel=1e-5)
    expected = (outputs - LABELS["a"])[known].square().mean().sqrt()
    assert found["validation/metric/a"] == pytest.approx(float(expected), rel=1e-5)


def test_training_logs_the_loss_of_each_task_and_the_rate_of_each_node() -> None:
    module, seen = lightning(), []
    log = module.log_dict
    module.log_dict = lambda numbers, **rest: (seen.append(numbers), log(numbers, **rest))
    run = trainer(max_steps=3)
    run.fit(module, DataLoader(Rows(), 4))
    first = known_losses(branched().train(), torch.arange(4))
    assert seen[0]["train/loss/b"] == pytest.approx(float(first["b"]), rel=1e-5)
    assert seen[0]["train/loss"] == pytest.approx(float(sum(first.values())), rel=1e-5)
    assert "train/loss/b" not in seen[1]  # the second batch has none
    names = [group["name"] for group in run.optimizers[0].param_groups]
    assert names == ["nodes.0.0", "heads.0", "heads.1"]


def test_a_loader_for_each_task_trains_its_task() -> None:
    from lightning.pytorch.utilities import CombinedLoader

    data = {task: [(X[rows], labels[rows]) for rows in torch.arange(12).split(4)] for task, labels in LABELS.items()}
    module = lightning(learning_rate=1e-2, schedule="constant", optimizer=torch.optim.SGD)
    loaders = {task: DataLoader(batches, batch_size=None) for task, batches in data.items()}
    trainer(max_steps=2).fit(module, CombinedLoader(loaders, "max_size_cycle"))
    expected = branched().train()
    optimizer = torch.optim.SGD(expected.parameters(), weight_decay=1e-4, lr=1e-2)
    for number in range(2):
        optimizer.zero_grad()
        for task in TASKS:  # each on its own forward pass, as the data are of its own
            x, labels = data[task][number]
            known = ~labels.isnan().any(1)
            if known.any():
                LOSSES[task](expected(x, [task])[task][known], labels[known]).backward()
        optimizer.step()
    assert same(module.network, expected)


def test_lightning_accumulates_and_clips_whatever_the_weighting() -> None:
    module = lightning(weights=branchnet.training.Aggregate(lambda rows: rows.sum(0)), optimizer=torch.optim.SGD,
                       learning_rate=0.1, schedule="constant")  # fmt: skip
    trainer(max_steps=1, accumulate_grad_batches=3, gradient_clip_val=0.1).fit(module, DataLoader(Rows(), 4))
    expected = branched().train()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, weight_decay=1e-4)
    for rows in torch.arange(12).split(4):
        (torch.stack(list(known_losses(expected, rows).values())).sum() / 3).backward()
    nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
    optimizer.step()
    assert same(module.network, expected)


def test_parameters_of_losses_are_trained_and_in_the_checkpoint() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Any, labels: Any) -> Any:
            return (self.scale * output - labels).square().mean()

    from branchnet.training import LightningBranched

    module = LightningBranched(branched(), {**LOSSES, "a": Scaled()})
    trainer(max_steps=2).fit(module, DataLoader(Rows(), 4))
    assert float(module.loss_modules[0].scale) != 1
    assert "loss_modules.0.scale" in module.state_dict()


def test_what_cannot_be_trained_is_refused() -> None:
    from branchnet.training import LightningBranched

    with pytest.raises(TrainingError, match="given a Linear; expected a BranchedNetwork"):
        LightningBranched(nn.Linear(2, 2), LOSSES)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="task 'b' lacks a loss"):
        LightningBranched(branched(), {"a": LOSSES["a"]})
    with pytest.raises(TrainingError, match=r"metrics name \['c'\]; expected some of \['a', 'b'\]"):
        lightning(metrics={"c": branchnet.training.rmse()})
    with pytest.raises(TrainingError, match=r"learning rate of heads\.0 is -1"):
        lightning(learning_rate=lambda node: -1 if node.id == "heads.0" else 1e-3)
    with pytest.raises(TrainingError, match="the schedule needs the number of steps"):
        trainer(max_epochs=-1).fit(lightning(), DataLoader(Rows(), 4))


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "branchnet.training.frameworks.lightning_module"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(branchnet.training.__dict__, "LightningBranched", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(TrainingError, match=r"LightningBranched needs Lightning: pip install 'branchnet\[train\]'"):
        branchnet.training.LightningBranched  # noqa: B018
