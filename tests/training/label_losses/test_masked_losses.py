"""Losses equal those of torch on what is labelled; missing labels change neither losses nor gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet import training
from branchnet.data import LabelForm
from branchnet.errors import TrainingError

NAN = torch.nan


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = output.clone().requires_grad_()
    value = loss(leaf, target)
    (found,) = torch.autograd.grad(value, leaf)
    return value.detach(), found


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_class_loss_equals_cross_entropy(weights: Tensor | None) -> None:
    output, target = random(4, 3, 5), torch.randint(0, 3, (4, 5), generator=torch.Generator().manual_seed(1))
    target[0], target[1, 2] = 255, -1
    known = (target >= 0) & (target != 255)
    logits = output.movedim(1, -1)[known]
    expected = F.cross_entropy(logits, target[known], None if weights is None else weights.double())
    value, slope = gradient(training.class_loss(ignore=255, weights=weights), output, target)
    assert value == pytest.approx(float(expected))
    assert bool((slope.movedim(1, -1)[~known] == 0).all())


@pytest.mark.parametrize(("ours", "theirs"), [("absolute_loss", F.l1_loss), ("squared_loss", F.mse_loss)])
def test_losses_of_numbers_equal_torchs_on_what_is_known(ours: str, theirs: Callable[..., Tensor]) -> None:
    output, target = random(4, 1, 3, 3), random(4, 1, 3, 3, seed=1)
    target[0], target[1, 0, 0, 0] = NAN, NAN
    known = ~target.isnan()
    value, slope = gradient(getattr(training, ours), output, target)
    assert value == pytest.approx(float(theirs(output[known], target[known])))
    assert bool((slope[~known] == 0).all())
    assert bool((slope[known] != 0).all())
    assert getattr(training, ours)(output[:, 0, 0, 0], output[:, :1, 0, 0]) == 0


def test_direction_losses_leave_out_vectors_of_length_0() -> None:
    output, target = random(3, 3, 2, 2), F.normalize(random(3, 3, 2, 2, seed=1), dim=1)
    target[0], target[1, :, 0, 0] = 0, NAN
    known = (target.nan_to_num(0) != 0).any(1)
    found, wanted = (values.movedim(1, -1)[known] for values in (output, target))
    value, slope = gradient(training.direction_loss, output, target)
    assert value == pytest.approx(float(F.l1_loss(F.normalize(found, dim=1), wanted)))
    assert bool((slope.movedim(1, -1)[~known] == 0).all())
    cosine, slope = gradient(training.cosine_loss, output, target)
    assert cosine == pytest.approx(float((1 - F.cosine_similarity(found, wanted, dim=1)).mean()))
    assert bool((slope.movedim(1, -1)[~known] == 0).all())


def test_binary_loss_equals_torchs() -> None:
    output, target = random(6, 2), (random(6, 2, seed=1) > 0.5).double()
    target[0, 0], target[1, 1] = NAN, -1
    known = target >= 0
    value, slope = gradient(training.binary_loss(), output, target)
    assert value == pytest.approx(float(F.binary_cross_entropy_with_logits(output[known], target[known])))
    assert bool((slope[~known] == 0).all())


@pytest.mark.parametrize("weight", [0.95, "balanced"])
def test_weighted_binary_loss_equals_the_formula_of_holistic_edges(weight: float | str) -> None:
    output, target = random(2, 1, 4, 4), (random(2, 1, 4, 4, seed=1) > 1).double()
    target[0, 0, 0] = NAN
    known = ~target.isnan()
    z, y = output[known], target[known]
    w = float((y == 0).double().mean()) if weight == "balanced" else 0.95
    expected = (-w * y * F.logsigmoid(z) - (1 - w) * (1 - y) * F.logsigmoid(-z)).mean()
    assert training.binary_loss(positive_weight=weight)(output, target) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (training.class_loss(ignore=255), torch.full((2, 4, 4), 255)),
        (training.absolute_loss, torch.full((2, 3, 4, 4), NAN)),
        (training.squared_loss, torch.full((2, 3, 4, 4), NAN)),
        (training.direction_loss, torch.zeros(2, 3, 4, 4)),
        (training.cosine_loss, torch.zeros(2, 3, 4, 4)),
        (training.binary_loss(), torch.full((2, 3, 4, 4), NAN)),
        (training.binary_loss(positive_weight="balanced"), torch.full((2, 3, 4, 4), NAN)),
    ],
)
def test_a_batch_without_labels_has_no_loss_and_no_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], target: Tensor
) -> None:
    value, slope = gradient(loss, random(2, 3, 4, 4).float(), target)
    assert value == 0
    assert bool((slope == 0).all())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"outputs have shape \(2, 1\) and labels \(2, 3\)"):
        training.absolute_loss(torch.zeros(2, 1), torch.zeros(2, 3))
    with pytest.raises(TrainingError, match="positive_weight=2; expected None, 'balanced' or a number between 0 and 1"):
        training.binary_loss(positive_weight=2)
    with pytest.raises(TrainingError, match="task 'cars' has labels of kind 'boxes'"):
        training.standard_losses({"cars": LabelForm("boxes")})
    with pytest.raises(TrainingError, match="list has no label_forms"):
        training.standard_metrics([])
