"""Metrics of torchmetrics, and whatever works like them, where ours are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import training
from branchnet.errors import TrainingError


class Pass(nn.Module):
    """Returns its input for every task."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor]:
        return dict.fromkeys(tasks or ["t"], x)


class Largest:
    """The largest output: the least that is asked of a metric."""

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen = -torch.inf

    def update(self, output: Tensor, target: Tensor) -> None:
        self.seen = max(self.seen, float(output.max()))

    def compute(self) -> Any:
        return self.seen


def test_an_object_with_three_methods_is_a_metric_and_stays_as_it_was() -> None:
    metric = Largest()
    metric.seen = 99.0
    x = torch.arange(10.0)[:, None]
    assert branchnet.evaluate(Pass(), x, {"t": x}, {"t": metric}, batch_size=3) == {"t": 9.0}
    assert metric.seen == 99.0
    assert training.delta({"t": 1.0}, {"t": 2.0}, {"t": metric}) == pytest.approx(100)
    assert training.constant_scores({"t": x}, {"t": x}, {"t": metric}) == {"t": 4.5}


def test_samples_without_a_label_do_not_count_in_its_metric() -> None:
    x = torch.arange(6.0)[:, None]
    labels = [{"t": x[i] + 1} if i % 2 else {"u": x[i] + 2, "t": None} for i in range(6)]
    metrics: dict[str, Any] = {"t": training.rmse(), "u": training.mean_absolute_error()}
    for size in (1, 4, 6):
        found = branchnet.evaluate(Pass(), list(zip(x, labels, strict=True)), None, metrics, batch_size=size)
        assert found == {"t": 1.0, "u": 2.0}
    with pytest.raises(TrainingError, match="task 'v': no sample has a target"):
        branchnet.evaluate(Pass(), list(zip(x, labels, strict=True)), None, {"v": training.rmse(), **metrics})


def test_what_is_no_metric_is_refused() -> None:
    x = torch.zeros(3, 1)
    with pytest.raises(TrainingError, match="task 't': a metric is 'rmse'; expected a branchnet"):
        branchnet.evaluate(Pass(), x, {"t": x}, {"t": "rmse"})
    with pytest.raises(TrainingError, match="a metric is <class"):
        training.read_metric(Largest)
    undirected = Largest()
    undirected.higher_is_better = None  # type: ignore[assignment]
    with pytest.raises(TrainingError, match="Largest does not say whether larger is better"):
        training.read_metric(undirected)


def test_several_numbers_are_refused() -> None:
    x = torch.zeros(3, 1)
    metric = Largest()
    metric.compute = lambda: torch.zeros(2)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"Largest computes a tensor of shape \(2,\); expected one number"):
        branchnet.evaluate(Pass(), x, {"t": x}, {"t": metric})


def test_torchmetrics_agree_with_ours_and_are_not_changed() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=generator)
    labels = torch.randint(0, 5, (60,), generator=generator)
    classification = torchmetrics.classification
    theirs = {
        "accuracy": classification.MulticlassAccuracy(5, average="micro"),
        "kappa": classification.MulticlassCohenKappa(5),
        "iou": classification.MulticlassJaccardIndex(5),
    }
    ours = {"accuracy": training.accuracy(), "kappa": training.cohen_kappa(), "iou": training.mean_iou(5)}
    targets = dict.fromkeys(theirs, labels)
    found = branchnet.evaluate(Pass(), logits, targets, theirs, batch_size=7)
    expected = branchnet.evaluate(Pass(), logits, targets, ours, batch_size=7)
    assert {task: 100 * value for task, value in found.items()} == pytest.approx(expected, rel=1e-5)
    assert all(metric.update_count == 0 for metric in theirs.values())
    assert training.constant_scores(targets, targets, theirs)["kappa"] == pytest.approx(0, abs=1e-6)


def test_torchmetrics_of_numbers_and_answers_agree_with_ours() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(1)
    output, target = (torch.randn(60, 2, generator=generator) for _ in range(2))
    theirs: dict[str, Any] = {
        "rmse": torchmetrics.MeanSquaredError(squared=False),
        "mae": torchmetrics.MeanAbsoluteError(),
        "r2": torchmetrics.R2Score(),
    }
    ours = {"rmse": training.rmse(), "mae": training.mean_absolute_error(), "r2": training.r_squared()}
    targets = dict.fromkeys(theirs, target)
    found = branchnet.evaluate(Pass(), output, targets, theirs, batch_size=11)
    assert found == pytest.approx(branchnet.evaluate(Pass(), output, targets, ours), rel=1e-4)
    directions = {name: training.read_metric(metric).larger_is_better for name, metric in theirs.items()}
    assert directions == {"rmse": False, "mae": False, "r2": True}
    yes = (target > 0).long()
    theirs = {
        "roc": torchmetrics.classification.BinaryAUROC(),
        "ap": torchmetrics.classification.BinaryAveragePrecision(),
    }
    ours = {"roc": training.area_under_roc(), "ap": training.average_precision()}
    one, answers = output[:, :1], dict.fromkeys(theirs, yes[:, :1])
    found = branchnet.evaluate(Pass(), one, answers, theirs, batch_size=11)
    expected = branchnet.evaluate(Pass(), one, answers, ours)
    assert {task: 100 * value for task, value in found.items()} == pytest.approx(expected, rel=1e-4)
