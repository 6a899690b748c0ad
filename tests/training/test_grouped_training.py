"""Grouped networks are trained as each of them by itself, auxiliary tasks included, bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.builder import GroupedNetworks
from branchnet.clustering import Grouping
from branchnet.errors import TrainingError
from branchnet.training import GroupedHistory, Teachers, evaluate, rmse

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
LABELS = {task: X[:, [i]] * (i + 1) for i, task in enumerate("abc")}
LOSSES = dict.fromkeys("abc", nn.functional.mse_loss)
GROUPING = Grouping((frozenset("ab"), frozenset("bc")), {"a": 0, "b": 0, "c": 1}, 0.0)
SHORT: dict[str, Any] = {
    "steps": 7,
    "batch_size": 16,
    "seed": 3,
    "learning_rate": 1e-3,
    "keep": "last",
    "progress": False,
}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)).eval()


DONORS = {task: network(i) for i, task in enumerate("abc")}


def grouped() -> GroupedNetworks:
    return branchnet.build(GROUPING, branchnet.split_all(DONORS, X[:2], locations=["1"]), init="donor")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_fit_trains_each_network_with_all_of_its_tasks() -> None:
    together, apart = grouped(), grouped()
    history = branchnet.fit(together, (X, LABELS), LOSSES, **SHORT)
    alone = [branchnet.fit(one, (X, LABELS), LOSSES, **SHORT) for one in apart.networks]
    assert same(together, apart) and not same(together, grouped())
    assert isinstance(history, GroupedHistory) and not any(m.training for m in together.modules())
    assert list(history.losses) == ["a", "b", "c", "b in network 1"]
    assert history.losses["b"] == alone[0].losses["b"]
    assert history.losses["b in network 1"] == alone[1].losses["b"]
    assert [one.losses for one in history.networks] == [one.losses for one in alone]


def test_fit_reads_labels_with_the_samples() -> None:
    samples = [(x, {task: labels[k] for task, labels in LABELS.items()}) for k, x in enumerate(X)]
    together, apart = grouped(), grouped()
    branchnet.fit(together, samples, LOSSES, **SHORT)
    branchnet.fit(apart, (X, LABELS), LOSSES, **SHORT)
    assert same(together, apart)


def test_distill_runs_the_teachers_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = grouped()
    alone = [branchnet.distill(one, DONORS, X, validation=X[:8], **SHORT) for one in apart.networks]
    together, ran = grouped(), []
    inner = Teachers._run
    monkeypatch.setattr(Teachers, "_run", lambda self, *args: ran.append(len(args[1])) or inner(self, *args))
    history = branchnet.distill(together, DONORS, X, validation=X[:8], **SHORT)
    assert same(together, apart)
    assert [one.losses for one in history.networks] == [one.losses for one in alone]
    assert history.kept_step == min(one.kept_step for one in alone)
    assert history.after["c"] == alone[1].after["c"]
    assert sum(size == len(X) for size in ran) == len(DONORS)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole, file = grouped(), tmp_path / "run.ckpt"
    branchnet.fit(whole, (X, LABELS), LOSSES, **SHORT)

    class Stop(Exception):
        pass

    calls = []

    def stopping(output: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise Stop
        return nn.functional.mse_loss(output, labels)

    def going(output: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, labels)

    cut = grouped()
    with pytest.raises(Stop):  # in the second network: the first has no task c
        branchnet.fit(cut, (X, LABELS), LOSSES | {"c": stopping}, checkpoint=file, checkpoint_seconds=0, **SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0.ckpt", "run-1.ckpt"]
    assert not any(module.training for module in cut.modules())
    (tmp_path / "run-1.ckpt").unlink()  # of another loss
    resumed = grouped()
    history = branchnet.fit(resumed, (X, LABELS), LOSSES | {"c": going}, checkpoint=file, **SHORT)
    assert same(resumed, whole)
    assert [one.resumed_at for one in history.networks] == [7, 0] and history.resumed_at == 0


def test_evaluate_judges_the_networks_that_serve() -> None:
    net = grouped()
    metrics = dict.fromkeys("abc", rmse())
    found = evaluate(net, X, LABELS, metrics)
    for task, k in net.serving.items():
        assert found[task] == evaluate(net.networks[k], X, {task: LABELS[task]}, {task: rmse()})[task]


def test_batchnorm_is_estimated_in_every_network() -> None:
    from branchnet.training import reestimate_batchnorm

    together, apart = grouped(), grouped()
    assert reestimate_batchnorm(together, X) == sum(reestimate_batchnorm(one, X) for one in apart.networks)
    assert same(together, apart)


def test_a_missing_task_is_found_before_anything_is_trained() -> None:
    net = grouped()
    before = copy.deepcopy(net)
    with pytest.raises(TrainingError, match=r"\['c'\] have not got labels; expected one for each of"):
        branchnet.fit(net, (X, {task: LABELS[task] for task in "ab"}), LOSSES, **SHORT)
    with pytest.raises(TrainingError, match=r"\['c'\] have not got a loss"):
        branchnet.fit(net, (X, LABELS), {task: LOSSES[task] for task in "ab"}, **SHORT)
    with pytest.raises(TrainingError, match=r"\['c'\] have not got a single-task network"):
        branchnet.distill(net, {task: DONORS[task] for task in "ab"}, X, **SHORT)
    assert same(net, before)
