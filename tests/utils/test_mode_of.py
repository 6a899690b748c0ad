"""Modes for a while: every module gets its own back, and layers that act on a change of mode see one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from branchnet.utils.modes import evaluation_mode, mode_of


class Merging(nn.Module):
    """Adds a second weight to the first in evaluation, as low-rank adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.added, self.merged = 2.0, 3.0, False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.weight += -self.added if mode else self.added
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight if self.merged else self.weight + self.added)


def network(modes: list[bool]) -> nn.Module:
    made = nn.Sequential(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)), nn.Linear(2, 2), nn.Dropout(0.1))
    for module, mode in zip(made.modules(), modes, strict=True):
        module.training = mode
    return made


@given(modes=st.lists(st.booleans(), min_size=6, max_size=6), training=st.sampled_from([None, True, False]), fails=...)
def test_every_module_gets_its_own_mode_back(modes: list[bool], training: bool | None, fails: bool) -> None:
    made = network(modes)
    try:
        with evaluation_mode(made) if training is None else mode_of(made, training=training):
            training = bool(training)
            assert all(module.training is training for module in made.modules())
            made[1].train(not training)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in made.modules()] == modes


@pytest.mark.parametrize("inner", [True, False])
def test_a_layer_that_acts_on_its_mode_is_right_inside_and_outside(inner: bool) -> None:
    layer = Merging()
    made = nn.Sequential(layer, nn.Dropout(0.5)).train()
    layer.train(inner)
    for _ in range(2):
        with evaluation_mode(made):
            assert layer.merged and torch.equal(made(torch.ones(1)), torch.tensor([5.0]))
        assert (layer.merged, layer.training, made.training) == (not inner, inner, True)
        assert torch.equal(layer(torch.ones(1)), torch.tensor([5.0]))
