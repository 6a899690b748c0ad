"""Inputs of other sizes than the example's: the network's values or an error that names the size, never fewer rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.errors import SplitError
from tests.silent_errors.toys import WIDTH, FourLayers, X, made, separate

pytestmark = pytest.mark.slow


class CentredBatch(FourLayers):
    """Subtracts the mean of a batch of several."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.l1(x)
        if h.shape[0] > 1:
            h = h - h.mean(0)
        return self.l4(self.l3(F.relu(self.l2(h))))


class RowByRow(FourLayers):
    """Goes through the samples in a Python loop."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(torch.stack([self.l2(F.relu(self.l1(row))) for row in x])))


class StepByStep(nn.Module):
    """Goes through the tokens in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(20, WIDTH), nn.LSTMCell(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.embedding(tokens)
        h = c = values.new_zeros(len(tokens), WIDTH)
        for step in range(tokens.shape[1]):
            h, c = self.cell(values[:, step], (h, c))
        return self.out(h)


class PaddedToEight(nn.Module):
    """Pads widths to a multiple of eight, where they are none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        if missing := (8 - h.shape[-1] % 8) % 8:
            h = F.pad(h, (0, missing))
        return self.out(self.second(h).mean((2, 3)))


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 20, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "example", "other"),
    [
        (CentredBatch, X[:1], X),
        (CentredBatch, X, X[:1]),
        (RowByRow, X, _normal(7, WIDTH)),
        (RowByRow, X, X[:1]),
        (StepByStep, _tokens(4, 5), _tokens(4, 9)),
        (StepByStep, _tokens(4, 5), _tokens(2, 3)),
        (PaddedToEight, _normal(2, 3, 16, 16), _normal(2, 3, 16, 20)),
        (PaddedToEight, _normal(2, 3, 16, 20), _normal(2, 3, 16, 16)),
    ],
)
def test_other_sizes_are_right_or_refused_by_name(
    make: Callable[[], nn.Module], example: Tensor, other: Tensor
) -> None:
    networks = {task: made(make, seed).eval() for seed, task in enumerate("ab")}
    branched = separate(networks, example).eval()
    for task, network in networks.items():
        torch.testing.assert_close(branched(example)[task], network(example), rtol=1e-5, atol=1e-6)
    try:
        found = branched(other)
    except SplitError as error:
        assert str(tuple(other.shape)) in str(error) and "expected" in str(error)
        return
    for task, network in networks.items():
        torch.testing.assert_close(found[task], network(other), rtol=1e-5, atol=1e-6)
