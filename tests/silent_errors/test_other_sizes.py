"""Inputs of other sizes than the example's: the network's values or an error that names the size, never fewer rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.errors import SplitError
from tests.silent_errors.toys import WIDTH, X, made, separate
from tests.stages.test_sizes import Centred, Rows, Steps

pytestmark = pytest.mark.slow


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
        (Centred, X[:1], X),
        (Centred, X, X[:1]),
        (Rows, X, _normal(7, WIDTH)),
        (Rows, X, X[:1]),
        (Steps, _tokens(4, 5), _tokens(4, 9)),
        (Steps, _tokens(4, 5), _tokens(2, 3)),
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
