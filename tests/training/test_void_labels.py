"""Pixels without a label do not count: batches that are accumulated give what one large batch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.training import class_loss, direction_loss
from branchnet.training.label_losses.counted_labels import counted_labels
from branchnet.training.label_losses.masked_losses import absolute_loss, binary_loss, cosine_loss, squared_loss

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.randint(0, 3, (24, 4, 4), generator=GENERATOR)
NUMBERS = torch.randn(24, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
VOID = torch.rand(24, 4, 4, generator=GENERATOR) < torch.linspace(0, 1, 24)[:, None, None]
WEIGHTS = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Tensor]] = {
    "classes": (class_loss(ignore=255), CLASSES.masked_fill(VOID, 255)),
    "weighted": (class_loss(ignore=255, weights=WEIGHTS), CLASSES.masked_fill(VOID, 255)),
    "torch": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=255), CLASSES.masked_fill(VOID, 255)),
    "depth": (absolute_loss, NUMBERS.masked_fill(VOID[:, None], torch.nan)),
    "squares": (squared_loss, NUMBERS.masked_fill(VOID[:, None], torch.nan)),
    "normals": (direction_loss, NUMBERS.masked_fill(VOID[:, None], 0.0)),
    "cosine": (cosine_loss, NUMBERS.masked_fill(VOID[:, None], torch.nan)),
    "yes": (binary_loss(positive_weight=0.9), (NUMBERS > 0).double().masked_fill(VOID[:, None], -1.0)),
}


def network(tasks: tuple[str, ...]) -> branchnet.BranchedNetwork:
    singles = {}
    for number, task in enumerate(tasks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            singles[task] = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    return branchnet.build(Tree.shared(tasks, 1), singles, example=X[:2], locations=["1"], init="donor")


def trained(tasks: tuple[str, ...], **settings: Any) -> branchnet.BranchedNetwork:
    net = network(tasks)
    data = (X, {task: LOSSES[task][1] for task in tasks})
    branchnet.fit(
        net, data, {task: LOSSES[task][0] for task in tasks}, steps=3, learning_rate=0.1, optimizer=torch.optim.SGD,
        keep="last", clip=None, progress=False, **settings,
    )  # fmt: skip
    return net


def test_accumulated_batches_count_pixels_and_not_samples() -> None:
    tasks = tuple(LOSSES)
    one, other = trained(tasks, batch_size=24), trained(tasks, batch_size=6, accumulate=4)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("task", LOSSES)
def test_parts_weighed_by_what_they_count_add_up_to_the_whole(task: str) -> None:
    loss, labels = LOSSES[task]
    output = torch.randn(24, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [(output[k : k + 5], labels[k : k + 5]) for k in range(0, 24, 5)]
    counts = [counted_labels(loss, part, len(part)) for _, part in parts]
    total = sum(count * float(loss(*part)) for count, part in zip(counts, parts, strict=True) if count)
    assert total / sum(counts) == pytest.approx(float(loss(output, labels)))
    assert sum(counts) == pytest.approx(counted_labels(loss, labels, 24))


def test_the_held_out_loss_is_the_mean_over_all_pixels() -> None:
    loss, labels = LOSSES["classes"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        expected = float(F.cross_entropy(net(X[4:]), labels[4:], ignore_index=255))
    history = branchnet.fit(
        net, (X[:4], labels[:4]), loss, validation=(X[4:], labels[4:]), steps=1, batch_size=4, progress=False,
        learning_rate=1e-4,
    )  # fmt: skip
    assert history.before["loss"] == pytest.approx(expected)


def test_other_losses_are_means_over_samples() -> None:
    assert counted_labels(F.mse_loss, NUMBERS, 24) == 24
    assert counted_labels(nn.CrossEntropyLoss(), NUMBERS, 24) == 24  # probabilities
    assert counted_labels(class_loss(), [None], 1) == 1
