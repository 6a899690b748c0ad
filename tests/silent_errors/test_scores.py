"""Metrics against scikit-learn where labels are missing or have another form; changes of metrics; selections."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score, mean_absolute_error, r2_score
from torch import Tensor, nn

import branchnet
from branchnet import SeparateNetworks, Tree
from branchnet.errors import TrainingError, TreeError
from branchnet.training import Metric, accuracy, explained_variance, mean_angle, mean_iou, relative_changes, rmse
from branchnet.training import mean_absolute_error as our_mean_absolute_error

pytestmark = pytest.mark.slow

RANDOM = torch.Generator().manual_seed(0)


def scored(metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    return metric.result(sum(metric.sums(outputs[k : k + 8], targets[k : k + 8]) for k in range(0, len(outputs), 8)))


LABELS = torch.randint(-1, 11, (40, 24, 32), generator=RANDOM)
LOGITS = torch.randn(40, 11, 24, 32, generator=RANDOM) + 2 * F.one_hot(LABELS.clamp(min=0), 11).permute(0, 3, 1, 2)


def test_unlabelled_pixels_count_in_no_metric_of_classes() -> None:
    known, chosen = (LABELS >= 0).numpy().ravel(), LOGITS.argmax(1).numpy().ravel()
    labels = LABELS.numpy().ravel()
    expected = 100 * jaccard_score(labels[known], chosen[known], average="macro")
    assert scored(mean_iou(11), LOGITS, LABELS) == pytest.approx(expected)
    assert scored(accuracy(), LOGITS, LABELS) == pytest.approx(100 * np.mean((labels == chosen)[known]))


@pytest.mark.parametrize("void", [11, 255])
def test_a_void_class_is_left_out_by_name_or_refused(void: int) -> None:
    labels = torch.where(LABELS < 0, void, LABELS)
    with pytest.raises(TrainingError, match=rf"labels \[{void}\] are outside the 11 classes; expected 0 to 10"):
        scored(mean_iou(11), LOGITS, labels)
    assert scored(mean_iou(11, ignore=void), LOGITS, labels) == scored(mean_iou(11), LOGITS, LABELS)


def test_missing_numbers_and_directions_do_not_count() -> None:
    outputs, targets = torch.randn(200, 3, generator=RANDOM), torch.randn(200, 3, generator=RANDOM)
    rest, truth = outputs[50:].numpy(), targets[50:].numpy()
    zero, missing = targets.clone(), targets.clone()
    zero[:50], missing[:50] = 0, float("nan")
    cosines = (rest * truth).sum(1) / np.linalg.norm(rest, axis=1) / np.linalg.norm(truth, axis=1)
    assert scored(mean_angle(), outputs, zero) == pytest.approx(np.degrees(np.arccos(cosines)).mean(), rel=1e-5)
    assert scored(our_mean_absolute_error(), outputs, missing) == pytest.approx(mean_absolute_error(truth, rest))
    assert scored(rmse(), outputs, missing) == pytest.approx(np.sqrt(np.mean((truth - rest) ** 2)))
    expected = 100 * r2_score(truth, rest, multioutput="variance_weighted")
    assert scored(explained_variance(), outputs, missing) == pytest.approx(expected, rel=1e-5)


def test_explained_variance_is_exact_far_from_zero() -> None:
    targets = torch.randn(1000, 2, generator=RANDOM).double() * 1e-2 + 1e4
    outputs = targets + torch.randn(1000, 2, generator=RANDOM).double() * 5e-3
    expected = 100 * r2_score(targets, outputs, multioutput="variance_weighted")
    assert scored(explained_variance(), outputs, targets) == pytest.approx(expected, rel=1e-3)


def test_a_column_and_a_vector_are_compared_sample_by_sample() -> None:
    values = torch.randn(16, generator=RANDOM)
    assert scored(rmse(), values[:, None], values) == 0.0


def test_one_logit_of_yes_against_no_is_not_taken_for_a_single_class() -> None:
    logits, labels = torch.tensor([[5.0], [-5.0], [5.0], [-5.0]]), torch.tensor([1, 0, 1, 0])
    with pytest.raises(TrainingError, match="2 classes or more: for one logit z"):
        scored(accuracy(), logits, labels)
    assert scored(accuracy(), torch.cat([torch.zeros_like(logits), logits], 1), labels) == 100.0


def test_a_change_of_a_metric_below_zero_has_its_own_sign() -> None:
    """Networks that learn noise by heart explain less than nothing of other samples."""
    tasks = ("a", "b", "c")
    x, y = torch.randn(96, 20, generator=RANDOM), {task: torch.randn(96, 1, generator=RANDOM) for task in tasks}
    networks = {}
    for seed, task in enumerate(tasks):
        torch.manual_seed(seed)
        networks[task] = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        branchnet.fit(
            *(networks[task], (x[:48], y[task][:48]), F.mse_loss),
            **{"steps": 200, "learning_rate": 1e-2, "keep": "last", "progress": False},
        )
    metrics = {task: explained_variance() for task in tasks}
    held_out = x[48:], {task: values[48:] for task, values in y.items()}
    single = branchnet.evaluate(SeparateNetworks(networks), *held_out, metrics)
    staged = branchnet.split_all(networks, x[:2], locations=["0", "2"])
    branched = branchnet.build(Tree.shared(tasks, 2), staged, init="donor")
    found = branchnet.evaluate(branched, *held_out, metrics)
    assert max(single.values()) < 0
    lower = dict.fromkeys(tasks, False)
    changes = relative_changes(single, found, lower)
    for task in tasks:
        assert changes[task] == pytest.approx(100 * (found[task] - single[task]) / abs(single[task]))
        assert (changes[task] > 0) == (found[task] > single[task])
    assert branchnet.multi_task_performance(single, found, lower) == pytest.approx(np.mean(list(changes.values())))


def test_relative_performance_by_hand() -> None:
    lower = {"a": False, "b": True}
    expected = 100 * ((45 - 50) / 50 + (2 - 1.5) / 2) / 2
    assert branchnet.multi_task_performance({"a": 50.0, "b": 2.0}, {"a": 45.0, "b": 1.5}, lower) == pytest.approx(
        expected
    )
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert branchnet.multi_task_performance({"a": -5.0}, {"a": 5.0}, {"a": False}) == pytest.approx(200.0)


def test_networks_of_a_selection_are_those_that_were_measured() -> None:
    losses = [{"a": 1.0}, {"b": 1.0}, {"a": 0.2, "b": 0.9, "c": 0.3}, {"b": 0.1, "c": 0.9, "a": 0.8}, {"c": 1.0}]
    selection = branchnet.select_networks(losses, [1] * 5, 2)
    measured = {frozenset(losses[network]) for network in selection.networks}
    assert {frozenset(tree.tasks) for tree in selection.trees(2)} == measured == {frozenset("abc")}
    with pytest.raises(TreeError, match=r"one tree would lose .* expected trees\(depth\)"):
        selection.tree(2)
