"""AUROC, average precision, F of edges and overlap of salient regions against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score
from torch import Tensor

from branchnet import training
from branchnet.errors import TrainingError
from branchnet.training import Metric


def value(metric: Metric, output: Tensor, target: Tensor, size: int = 7) -> float:
    running = metric.accumulation()
    for start in range(0, len(output), size):
        running.update(output[start : start + size], target[start : start + size])
    return running.result()


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_rankings_equal_sklearn_with_ties(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, count) / 4 - 0.5
    truth = np.concatenate([[0, 1], generator.integers(0, 2, count - 2)])
    output, target = torch.tensor(scores), torch.tensor(truth)
    assert value(training.area_under_roc(), output, target) == pytest.approx(100 * roc_auc_score(truth, scores))
    expected = 100 * average_precision_score(truth, scores)
    assert value(training.average_precision(), output, target) == pytest.approx(expected)


def test_several_questions_with_missing_answers_are_averaged() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(50, 3, generator=generator)
    target = (torch.rand(50, 3, generator=generator) < 0.4).float()
    target[:20, 0] = torch.nan
    target[:, 2] = 1  # both answers never occur: no ROC
    expected = (roc_auc_score(target[20:, 0], output[20:, 0]) + roc_auc_score(target[:, 1], output[:, 1])) / 2
    assert value(training.area_under_roc(), output, target) == pytest.approx(100 * expected)


def test_two_logits_are_one_question() -> None:
    logits, target = torch.randn(30, 2), torch.arange(30) % 2
    expected = roc_auc_score(target, logits[:, 1] - logits[:, 0])
    assert value(training.area_under_roc(), logits, target) == pytest.approx(100 * expected)


def test_one_answer_alone_has_no_ranking() -> None:
    with pytest.raises(TrainingError, match="all targets are equal"):
        value(training.area_under_roc(), torch.randn(5), torch.ones(5))


def test_answers_other_than_yes_and_no_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"targets hold 0\.5; expected 0, 1"):
        value(training.edge_f_score(), torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))


def brute_f(probabilities: np.ndarray, truth: np.ndarray, radius: int) -> float:
    """F at each threshold over the whole set, pixel by pixel."""

    def near(mask: np.ndarray) -> np.ndarray:
        found = np.zeros_like(mask)
        for image, row, column in zip(*np.nonzero(mask), strict=True):
            rows, columns = (
                slice(max(0, row - radius), row + radius + 1),
                slice(max(0, column - radius), column + radius + 1),
            )
            found[image, rows, columns] = True
        return found

    best = 0.0
    for threshold in np.arange(1, 100) / 100:
        predicted = probabilities >= threshold
        precision = (predicted & near(truth)).sum() / max(1, predicted.sum())
        recall = (truth & near(predicted)).sum() / max(1, truth.sum())
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
    return best


@pytest.mark.parametrize("radius", [0, 1])
def test_f_of_edges_equals_brute_force(radius: int) -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(3, 1, 9, 8, generator=generator) < 0.2
    logits = torch.randn(3, 1, 9, 8, generator=generator) + 2 * truth
    expected = brute_f(logits.double().sigmoid()[:, 0].numpy(), truth[:, 0].numpy(), radius)
    assert value(training.edge_f_score(tolerance=radius), logits, truth.float(), 2) == pytest.approx(100 * expected)


def test_pixels_without_a_label_do_not_count_as_edges() -> None:
    logits = torch.tensor([[[[9.0, 9.0, -9.0]]]])
    target = torch.tensor([[[[1.0, torch.nan, 0.0]]]])
    assert value(training.edge_f_score(), logits, target) == 100.0


def test_salient_regions_equal_the_mean_of_each_images_overlap() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(4, 1, 6, 6, generator=generator) < 0.3
    truth[3] = False
    logits = torch.randn(4, 1, 6, 6, generator=generator) + truth.float()
    best = 0.0
    for threshold in np.linspace(0.2, 0.9, 15):
        overlaps = []
        for image, region in zip(logits.double().sigmoid().numpy(), truth.numpy(), strict=True):
            predicted = image > threshold
            either = (predicted | region).sum()
            overlaps.append((predicted & region).sum() / either if either else 1.0)
        best = max(best, float(np.mean(overlaps)))
    assert value(training.saliency_iou(), logits, truth.float(), 3) == pytest.approx(100 * best)


def test_kappa_of_labels_equals_sklearn() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(80, 4, generator=generator), torch.randint(0, 4, (80,), generator=generator)
    labels[:5] = 255
    expected = cohen_kappa_score(labels[5:], logits[5:].argmax(1))
    assert value(training.cohen_kappa(ignore=255), logits, labels) == pytest.approx(100 * expected)
