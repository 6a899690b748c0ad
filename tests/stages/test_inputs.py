"""Networks whose inputs are not one image: series, volumes, tables, several tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from branchnet.stages import split
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike


class Series(nn.Module):
    """Dilated convolutions over time, then a recurrent layer of which the last state counts."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(3, 3, 3, padding=2**k, dilation=2**k), nn.BatchNorm1d(3)) for k in range(3))
        )
        self.memory = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        series, (last, _) = self.memory(self.convolutions(x).transpose(1, 2))
        return self.head(torch.relu(last[-1] + series.mean(1)))


class Table(nn.Module):
    """Categories and numbers under their own names."""

    def __init__(self) -> None:
        super().__init__()
        self.category = nn.Embedding(6, 4)
        self.layers = nn.ModuleList(nn.Linear(7, 7) for _ in range(3))
        self.head = nn.Linear(7, 1)

    def forward(self, *, numbers: Tensor, category: Tensor) -> dict[str, Tensor]:
        x = torch.cat([numbers, self.category(category)], 1)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return {"value": self.head(x)}


class TwoViews(nn.Module):
    """The second input joins late."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.joint = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.joint(torch.relu(self.left(left)) * self.right(right))
        return self.head(joint), joint


VOLUMES = nn.Sequential(nn.Conv3d(2, 4, 3, stride=2), nn.BatchNorm3d(4), nn.ReLU(True), nn.Conv3d(4, 2, 1))

CASES: dict[str, tuple[nn.Module, Any, list[str]]] = {
    "series": (Series(), torch.randn(3, 3, 20), ["convolutions.1", "memory"]),
    "table": (Table(), {"numbers": torch.randn(3, 3), "category": torch.tensor([0, 5, 2])}, ["layers.0", "layers.1"]),
    "two tensors": (TwoViews(), (torch.randn(3, 4), torch.randn(3, 3)), ["left", "joint"]),
    "volumes": (VOLUMES, torch.randn(2, 2, 6, 7, 8), ["0", "1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_networks_of_every_input_are_faithful(case: str):
    network, example, locations = CASES[case]
    staged = split(network, example, locations=locations)
    assert staged.locations == tuple(locations)
    assert_same_keys(network, staged)
    for batch in (None, 6):
        assert_evaluates_alike(network, staged, staged.interface.random(batch, seed=2))
        assert_trains_alike(network, staged, staged.interface.random(batch, seed=3))


def test_an_input_that_joins_late_travels_in_the_cut():
    staged = split(TwoViews(), (torch.randn(3, 4), torch.randn(3, 3)), locations=["left"])
    assert [tensor.shape for tensor in staged.cuts[0]] == [(3, 3), (3, 4)]
    assert [tensor.stage for tensor in staged.cuts[0]] == [-1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_survives(dtype: torch.dtype):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    staged = copy.deepcopy(split(network, torch.randn(2, 3, 6, 6), locations=["0", "2"])).to(dtype)
    assert_evaluates_alike(copy.deepcopy(network).to(dtype), staged, torch.randn(2, 3, 6, 6, dtype=dtype))
