"""Constant answers: no other constant is better, and data sets with missing labels are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchnet import training
from branchnet.errors import TrainingError
from branchnet.training import Metric, constant_answers, constant_scores
from tests.training.judging.test_ranking_and_region_metrics import value

OF_NUMBERS: list[Callable[[], Metric]] = [
    training.rmse,
    training.mean_absolute_error,
    training.explained_variance,
    training.r_squared,
    training.absolute_relative_error,
    training.log10_error,
    training.log_rmse,
]


@pytest.mark.parametrize("make", OF_NUMBERS)
@given(st.integers(0, 2**31), st.integers(3, 30))
@settings(max_examples=10, deadline=None)
def test_no_constant_number_is_better(make: Callable[[], Metric], seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = 0.1 + 5 * torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 3
    metric = make()
    best = constant_scores({"t": target}, {"t": target}, {"t": metric})["t"]
    sign = 1 if metric.larger_is_better else -1
    for other in torch.linspace(0.1, 5.1, 201).tolist():
        assert sign * value(metric, torch.full_like(target, other), target) <= sign * best + 1e-9


@given(st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_no_constant_class_is_better(seed: int) -> None:
    labels = torch.randint(0, 4, (20, 3, 3), generator=torch.Generator().manual_seed(seed))
    labels[0, 0] = 255
    for metric in (training.accuracy(ignore=255), training.mean_iou(4, ignore=255)):
        best = constant_scores({"t": labels}, {"t": labels}, {"t": metric})["t"]
        for other in range(4):
            logits = torch.zeros(20, 4, 3, 3)
            logits[:, other] = 1
            assert value(metric, logits, labels) <= best + 1e-9


def test_no_constant_distribution_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    metric = training.kl_divergence()
    best = constant_scores({"t": target}, {"t": target}, {"t": metric})["t"]
    for _ in range(200):
        other = torch.randn(3, generator=generator, dtype=torch.float64).expand(30, 3)
        assert value(metric, other, target) >= best - 1e-9
    explained = constant_scores({"t": target}, {"t": target}, {"t": training.explained_divergence()})["t"]
    assert explained == pytest.approx(0, abs=1e-9)


def test_the_mean_direction_has_the_largest_mean_cosine() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(50, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 1.0])
    answer = constant_answers({"t": target}, {"t": training.mean_angle()})["t"]
    unit = torch.nn.functional.normalize(target, dim=1)
    best = (unit @ answer).mean()
    assert answer.norm() == pytest.approx(1)
    for other in torch.nn.functional.normalize(torch.randn(500, 3, generator=generator, dtype=torch.float64), dim=1):
        assert (unit @ other).mean() <= best + 1e-12


def test_rankings_and_kappa_give_a_constant_nothing() -> None:
    target = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    metrics: dict[str, Any] = {"roc": training.area_under_roc(), "ap": training.average_precision()}
    scores = constant_scores(dict.fromkeys(metrics, target), dict.fromkeys(metrics, target), metrics)
    assert scores == {"roc": pytest.approx(50), "ap": pytest.approx(40)}
    kappa = constant_scores({"t": target.long()}, {"t": target.long()}, {"t": training.cohen_kappa()})
    assert kappa == {"t": 0.0}


def test_everything_is_an_edge_where_nothing_is_known() -> None:
    target = torch.zeros(2, 1, 4, 4)
    target[:, :, 0] = 1  # a quarter: precision 1/4, recall 1
    score = constant_scores({"t": target}, {"t": target}, {"t": training.edge_f_score()})["t"]
    assert score == pytest.approx(100 * 2 * 0.25 / 1.25)


@pytest.mark.parametrize("empty", [1, 3])
def test_nothing_is_salient_where_most_images_have_no_region(empty: int) -> None:
    target = torch.zeros(4, 1, 2, 2)
    target[empty:, :, 0] = 1
    score = constant_scores({"t": target}, {"t": target}, {"t": training.saliency_iou()})["t"]
    everywhere, nowhere = (4 - empty) / 4 * 0.5, empty / 4
    assert score == pytest.approx(100 * max(everywhere, nowhere))


class Partly:
    """Three samples of different size, of which only some have each label."""

    depths = (torch.full((1, 2, 2), 1.0), None, torch.full((1, 3, 1), 4.0))
    scenes = (None, 1, 1)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return torch.zeros(3, 4, 4), {"depth": self.depths[index], "scene": self.scenes[index]}


def test_labels_of_a_data_set_are_read_where_they_are() -> None:
    metrics = {"depth": training.mean_absolute_error(), "scene": training.accuracy()}
    answers = constant_answers(Partly(), metrics)
    assert {task: answer.tolist() for task, answer in answers.items()} == {"depth": [1.0], "scene": 1}
    assert constant_scores(Partly(), Partly(), metrics) == {"depth": pytest.approx(9 / 7), "scene": 100.0}


def test_a_task_without_labels_is_named() -> None:
    with pytest.raises(TrainingError, match="task 'edges': there is no label"):
        constant_answers(Partly(), {"edges": training.edge_f_score()})
    with pytest.raises(TrainingError, match=r"tasks \['edges'\] have a metric and no tensor of labels"):
        constant_answers({"t": torch.zeros(3, 1)}, {"t": training.rmse(), "edges": training.edge_f_score()})
    with pytest.raises(TrainingError, match="task 't': every label is missing"):
        constant_answers({"t": torch.full((3, 1), torch.nan)}, {"t": training.rmse()})
    own = Metric("own", True, lambda output, target: output.sum().view(1), float)
    with pytest.raises(TrainingError, match="no constant answer is known for the metric 'own'"):
        constant_answers({"t": torch.zeros(3, 1)}, {"t": own})


def test_outputs_are_no_classes() -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TrainingError, match=r"'scene': labels are torch\.float32 and no whole numbers"):
        constant_answers({"scene": logits}, {"scene": training.accuracy()})
    whole = torch.tensor([2.0, 0.0, 2.0, torch.nan])  # a class for some, in floating-point numbers
    assert constant_answers({"s": whole}, {"s": training.accuracy()})["s"] == 2
