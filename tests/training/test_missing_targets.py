"""Missing targets against scikit-learn on what is known; shapes and labels that no metric can be made of."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor, nn

from branchnet import training
from branchnet.errors import TrainingError
from branchnet.training import Metric, evaluate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_two(metric: Metric, output: Tensor, target: Tensor) -> float:
    half = len(output) // 2
    return metric.result(metric.sums(output[:half], target[:half]) + metric.sums(output[half:], target[half:]))


@given(seed=st.integers(0, 1000), missing=st.sampled_from([-1, -100, 255]), share=st.floats(0, 0.9))
@settings(max_examples=20, deadline=None)
def test_classes_count_where_they_are_known(seed: int, missing: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, 5, 5, generator=generator)
    labels = torch.randint(4, (6, 5, 5), generator=generator)
    unknown = torch.rand(6, 5, 5, generator=generator) < share
    unknown[0, 0, 0] = False
    known, predicted = labels[~unknown], logits.argmax(1)[~unknown]
    target, ignore = labels.masked_fill(unknown, missing), 255 if missing == 255 else None
    found = in_two(training.accuracy(ignore=ignore), logits, target)
    assert found == pytest.approx(100 * accuracy_score(known, predicted))
    found = in_two(training.mean_iou(4, ignore=ignore), logits, target)
    assert found == pytest.approx(100 * jaccard_score(known, predicted, average="macro"))


@pytest.mark.parametrize("missing", [math.nan, 0.0])
def test_measured_values_count_where_they_are_known(missing: float) -> None:
    output, whole = random(10, 3, 4, 4), random(10, 3, 4, 4, seed=1) + 0.5
    unknown = random(10, 3, 4, 4, seed=2) > 0.3
    target = whole.masked_fill(unknown, missing)
    ignore = None if math.isnan(missing) else missing
    known = [values[~unknown].numpy() for values in (whole, output)]
    assert in_two(training.rmse(ignore=ignore), output, target) == pytest.approx(math.sqrt(mean_squared_error(*known)))
    assert in_two(training.mean_absolute_error(ignore=ignore), output, target) == pytest.approx(
        mean_absolute_error(*known)
    )
    errors, spreads = 0.0, 0.0
    for channel in range(3):
        wanted, found = (values[:, channel][~unknown[:, channel]].double().numpy() for values in (whole, output))
        spread = wanted.var() * len(wanted)
        errors, spreads = errors + (1 - r2_score(wanted, found)) * spread, spreads + spread
    explained = in_two(training.explained_variance(ignore=ignore), output, target)
    assert explained == pytest.approx(100 * (1 - errors / spreads))


def test_vectors_without_a_direction_do_not_count() -> None:
    output, target = random(8, 3, 2), random(8, 3, 2, seed=3)
    expected = math.degrees(
        sum(
            math.acos(float(a @ b / (a.norm() * b.norm())))
            for a, b in zip(
                output[2:].movedim(1, -1).reshape(-1, 3).double(), target[2:].movedim(1, -1).reshape(-1, 3).double(),
                strict=True,
            )
        )
        / 12
    )  # fmt: skip
    target[0], target[1, 1] = 0.0, math.nan
    target[1, :, 0] = 0.5
    assert in_two(training.mean_angle(ignore=0.5), output, target) == pytest.approx(expected)


def test_logits_that_are_missing_or_infinite() -> None:
    output, target = random(5, 4), random(5, 4, seed=4)
    target[0, 2] = math.nan
    target[1, 0] = -math.inf
    shares = [softmax(values[1:].double().numpy(), axis=1) for values in (target, output)]
    assert in_two(training.kl_divergence(), output, target) == pytest.approx(rel_entr(*shares).sum(1).mean())
    agree = (output.argmax(1) == target.argmax(1))[1:].double().mean()
    assert in_two(training.top1_agreement(), output, target) == pytest.approx(100 * float(agree))


def test_labels_as_floats_with_nan() -> None:
    """As toxicity tables come: 0, 1 or nothing."""
    logits, target = torch.tensor([[0.0, 2.0], [0.0, -2.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0, math.nan])
    assert in_two(training.accuracy(), logits, target) == 50.0


@pytest.mark.parametrize("metric", [training.rmse(), training.mean_absolute_error(), training.explained_variance()])
def test_a_column_and_a_vector_are_one_shape(metric: Metric) -> None:
    output, target = random(9, 1), random(9, seed=5)
    assert (
        in_two(metric, output, target)
        == in_two(metric, output[:, 0], target)
        == in_two(metric, output, target[:, None])
    )


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        (training.mean_iou(3), random(1, 3, 4), torch.tensor([[0, 3, 1, 255]]), r"labels \[3, 255\] are outside the 3"),
        (training.mean_iou(3), random(1, 3, 2), torch.tensor([[0, 255]]), r"expected 0 to 2, or ignore=255"),
        (training.accuracy(), random(2, 3), torch.tensor([0, 7]), r"labels \[7\] are outside the 3 classes"),
        (training.accuracy(), random(2, 3), torch.tensor([0.5, 1.0]), r"labels hold 0\.5; expected whole numbers"),
        (training.accuracy(), random(4, 3), torch.zeros(4, 1, dtype=torch.long), r"expected labels of shape \(4,\)"),
        (training.accuracy(), random(4, 1), torch.zeros(4, dtype=torch.long), r"2 classes or more: for one logit z"),
        (training.mean_iou(3), random(4, 2), torch.zeros(4, dtype=torch.long), r"expected \(B, 3, \.\.\.\)"),
        (training.rmse(), random(4, 2), random(4), r"shape \(4, 2\) and targets \(4, 1\); expected one shape"),
        (training.mean_angle(), random(4, 3), random(4, 3, 1), r"and targets \(4, 3, 1\)"),
        (training.mean_angle(), random(4), random(4), r"expected \(B, components"),
        (training.kl_divergence(), random(4, 3), random(4, 2), r"\(4, 2\); expected one shape"),
        (training.rmse(), random(2, 2), torch.tensor([[math.inf, 1.0], [1.0, 1.0]]), r"ignore=math\.inf"),
        (training.rmse(), torch.full((2, 2), math.nan), random(2, 2), r"output is NaN at 4 places"),
        (training.accuracy(), torch.full((2, 2), math.nan), torch.tensor([0, -1]), r"output is NaN at 1 places"),
        (training.mean_angle(), torch.full((2, 3), math.nan), random(2, 3), r"output is NaN at 2 places"),
    ],
)  # fmt: skip
def test_what_no_metric_can_be_made_of_is_refused(metric: Metric, output: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        metric.sums(output, target)


@pytest.mark.parametrize(
    ("metric", "output", "target"),
    [
        (training.accuracy(ignore=1), random(2, 3), torch.tensor([1, -1])),
        (training.mean_iou(3), random(2, 3), torch.tensor([-1, -1])),
        (training.rmse(), random(2, 2), torch.full((2, 2), math.nan)),
        (training.explained_variance(), random(2, 2), torch.full((2, 2), math.nan)),
        (training.mean_angle(), random(2, 3), torch.zeros(2, 3)),
        (training.kl_divergence(), random(2, 3), torch.full((2, 3), math.nan)),
    ],
)
def test_no_target_at_all_is_an_error(metric: Metric, output: Tensor, target: Tensor) -> None:
    with pytest.raises(TrainingError, match="every target is missing"):
        metric.result(metric.sums(output, target))


def test_targets_that_do_not_vary_cannot_be_explained() -> None:
    metric = training.explained_variance()
    with pytest.raises(TrainingError, match="do not vary over 50 samples"):
        metric.result(metric.sums(random(50, 2), torch.full((50, 2), 0.1)))


def test_evaluate_names_the_task() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor]:
            return {"depth": x, "class": x}

    metrics = {"depth": training.rmse(ignore=0.0), "class": training.accuracy()}
    targets = {"depth": F.relu(random(6, 3)), "class": torch.tensor([0, 1, 2, 3, -1, 0])}
    with pytest.raises(TrainingError, match=r"task 'class': labels \[3\] are outside"):
        evaluate(Two(), random(6, 3), targets, metrics)
    targets["class"] = targets["class"].clamp(max=-1)
    with pytest.raises(TrainingError, match=r"task 'class': every target is missing"):
        evaluate(Two(), random(6, 3), targets, metrics)
