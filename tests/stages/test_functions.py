"""Modules that hold different functions are different, whatever else is alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from branchnet import SplitError, split_all


class Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Activation(function), nn.Linear(4, 4), nn.Linear(4, 2))


def test_a_stage_with_another_function_is_not_shared() -> None:
    alike = split_all({"a": network(torch.relu), "b": network(torch.relu)}, torch.rand(2, 4), locations=["1"])
    assert alike["b"].locations == ("1",)
    with pytest.raises(SplitError):
        split_all({"a": network(torch.relu), "b": network(torch.sin)}, torch.rand(2, 4), locations=["1"])
