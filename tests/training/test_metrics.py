"""Metrics against scikit-learn, numpy and closed forms, batch by batch against all at once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor, nn

import branchnet
from branchnet import training
from branchnet.errors import TrainingError
from branchnet.training import Metric, absolute_changes, evaluate, multi_task_performance, relative_changes


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, count: int, seed: int = 1) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def value(metric: Metric, output: Tensor, target: Tensor) -> float:
    return metric.result(metric.sums(output, target))


def test_accuracy_equals_sklearn() -> None:
    logits, target = random(50, 4), classes(50, count=4)
    assert value(training.accuracy(), logits, target) == pytest.approx(100 * accuracy_score(target, logits.argmax(1)))


def test_mean_iou_equals_the_macro_jaccard_score() -> None:
    logits, target = random(5, 4, 8, 8), classes(5, 8, 8, count=4)
    expected = jaccard_score(target.flatten(), logits.argmax(1).flatten(), average="macro")
    assert value(training.mean_iou(4), logits, target) == pytest.approx(100 * expected)


def test_mean_iou_ignores_negative_targets_and_absent_classes() -> None:
    logits = torch.tensor([[[5.0, 5.0, 5.0]], [[0.0, 0.0, 9.0]], [[0.0, 0.0, 0.0]]])[None]
    target = torch.tensor([[[0, -1, 1]]])
    assert value(training.mean_iou(3), logits, target) == 100.0


def test_errors_equal_sklearn() -> None:
    output, target = random(40, 3), random(40, 3, seed=2)
    assert value(training.rmse(), output, target) == pytest.approx(math.sqrt(mean_squared_error(target, output)))
    assert value(training.mean_absolute_error(), output, target) == pytest.approx(mean_absolute_error(target, output))


def test_mean_angle_of_known_rotations() -> None:
    angles = torch.tensor([0.0, 30.0, 90.0, 180.0]).deg2rad()
    turned = torch.stack([angles.cos(), angles.sin(), torch.zeros(4)], 1)
    ahead = torch.tensor([[2.0, 0.0, 0.0]]).expand(4, 3)
    assert value(training.mean_angle(), turned, ahead) == pytest.approx(75.0, abs=1e-4)


def test_explained_variance_equals_r2_weighted_by_variance() -> None:
    output, target = random(60, 3, 2, 2), random(60, 3, 2, 2, seed=3) * 2
    rows = [x.movedim(1, -1).reshape(-1, 3).numpy() for x in (target, output)]
    expected = r2_score(*rows, multioutput="variance_weighted")
    assert value(training.explained_variance(), output, target) == pytest.approx(100 * expected, rel=1e-6)


def test_kl_divergence_of_two_coins() -> None:
    output, target = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert value(training.kl_divergence(), output, target) == pytest.approx(expected)


def test_top1_agreement_counts_equal_winners() -> None:
    output = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    target = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0]])
    assert value(training.top1_agreement(), output, target) == 75.0


class Both(nn.Module):
    """Returns its inputs as the outputs of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor]:
        return {"a": x, "b": 2 * x}


@given(batch_size=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_any_batch_size_gives_the_whole_set_metric(batch_size: int) -> None:
    x, target = random(37, 4), random(37, 4, seed=5)
    metrics = {"a": training.rmse(), "b": training.explained_variance()}
    found = evaluate(Both(), x, {"a": target, "b": target}, metrics, batch_size=batch_size)
    assert found["a"] == pytest.approx(math.sqrt(mean_squared_error(target, x)))
    assert found["b"] == pytest.approx(100 * r2_score(target, 2 * x, multioutput="variance_weighted"), rel=1e-6)


def test_evaluate_restores_the_mode_and_needs_targets() -> None:
    network = Both().train()
    evaluate(network, random(4, 2), {"a": random(4, 2)}, {"a": training.rmse()})
    assert network.training
    with pytest.raises(TrainingError, match=r"\['b'\] have a metric and no targets"):
        evaluate(network, random(4, 2), {"a": random(4, 2)}, {"b": training.rmse()})


def test_targets_of_another_number_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"the numbers of targets are \{'a': 8\}; expected 4"):
        evaluate(Both(), random(4, 2), {"a": random(8, 2)}, {"a": training.rmse()})


def test_modules_that_were_in_eval_mode_stay_in_it() -> None:
    network = Both().train()
    network.add_module("frozen", nn.BatchNorm1d(2).eval())
    evaluate(network, random(4, 2), {"a": random(4, 2)}, {"a": training.rmse()})
    assert network.training and not network.get_submodule("frozen").training


def test_multi_task_performance_by_hand() -> None:
    single, other = {"iou": 50.0, "error": 1.0}, {"iou": 40.0, "error": 0.9}
    lower = {"iou": False, "error": True}
    assert relative_changes(single, other, lower) == pytest.approx({"iou": -20.0, "error": 10.0})
    assert multi_task_performance(single, other, lower) == pytest.approx(-5.0)


def test_a_single_task_metric_of_zero_does_not_count_unless_nothing_changed() -> None:
    single, other = {"a": 0.0, "b": 0.0, "c": 2.0}, {"a": 0.0, "b": 3.0, "c": 3.0}
    lower = dict.fromkeys(single, False)
    changes = relative_changes(single, other, lower)
    assert changes["a"] == 0.0 and math.isnan(changes["b"]) and changes["c"] == 50.0
    with pytest.warns(UserWarning, match=r"\['b'\] are 0"):
        assert multi_task_performance(single, other, lower) == 25.0
    with pytest.warns(UserWarning, match=r"\['b'\] are 0"):
        assert math.isnan(multi_task_performance({"b": 0.0}, {"b": 1.0}, {"b": False}))


values = st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(before=values, after=values, lower=st.booleans())
def test_relative_and_absolute_changes_have_one_sign_also_below_zero(before: float, after: float, lower: bool) -> None:
    compared = {"a": before}, {"a": after}, {"a": lower}
    points, relative = absolute_changes(*compared)["a"], relative_changes(*compared)["a"]
    better = before > after if lower else after > before
    assert (points > 0) == better and (points == 0) == (before == after)
    if before:
        assert (relative > 0) == better and abs(relative) == pytest.approx(100 * abs(after / before - 1), abs=1e-9)


def test_negative_explained_variances_that_rise_are_better() -> None:
    assert multi_task_performance({"a": -5.0}, {"a": 5.0}, {"a": False}) == 200.0
    assert multi_task_performance({"a": -5.0}, {"a": -10.0}, {"a": False}) == -100.0


def test_single_task_metrics_near_zero_are_named() -> None:
    single, other = {"r2": 0.01, "acc": 80.0}, {"r2": 3.0, "acc": 80.0}
    with pytest.warns(UserWarning, match=r"\['r2'\] are close to 0: their changes of \[29900\]%"):
        assert multi_task_performance(single, other, {"r2": False, "acc": False}) == pytest.approx(14950)


@pytest.mark.parametrize(
    ("single", "other", "lower", "message"),
    [
        ({"a": math.nan}, {"a": 1.0}, {"a": True}, r"single-task network are \{'a': nan\}; expected finite"),
        ({"a": 1.0}, {"a": math.inf}, {"a": True}, r"network compared are \{'a': inf\}; expected finite"),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, {"a": True}, r"\['b'\] have a metric of only one network"),
        ({"a": 1.0}, {"a": 1.0}, {}, r"\['a'\] are not in lower_is_better"),
        ({}, {}, {}, "no single-task metrics"),
    ],
)
def test_metrics_that_make_no_mean_are_refused(
    single: dict[str, float], other: dict[str, float], lower: dict[str, bool], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        multi_task_performance(single, other, lower)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"a": nn.functional.mse_loss},
            "task 'a': a metric is <function mse_loss.*; expected a branchnet",
        ),
        ({"a": "rmse"}, "task 'a': a metric is 'rmse'; expected"),
        ({"a": training.rmse}, "task 'a': a metric is <function rmse"),
        (training.rmse(), "metrics is a Metric; expected metrics by task"),
    ],
)
def test_what_is_no_metric_is_named(metrics: object, message: str) -> None:
    network = branchnet.SeparateNetworks({"a": nn.Linear(3, 1)})
    with pytest.raises(TrainingError, match=message):
        evaluate(network, random(4, 3), {"a": random(4, 1)}, metrics)
