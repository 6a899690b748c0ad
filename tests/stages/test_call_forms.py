"""What is known of a network's inputs: from the example that it was split with, or from the signature of `forward`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.data.call_forms import CallForm
from branchnet.stages.interface import call_form


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class TwoAndMore(nn.Module):
    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return x + y


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **more: Any) -> Tensor:
        return self.last(self.embed(input_ids) * attention_mask[..., None])


class Keywords(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["x"]


class Anything(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (One(), CallForm(1, 1, ("x",))),
        (TwoAndMore(), CallForm(2, 3, ("x", "y", "mask", "scale"))),
        (Language(), CallForm(1, 2, ("input_ids", "attention_mask"), floating=torch.float32)),
        (Keywords(), CallForm()),
        (Anything(), CallForm()),
        (nn.Linear(2, 2).double(), CallForm(1, 1, ("input",), floating=torch.float64)),
        (branchnet.SeparateNetworks({"a": TwoAndMore(), "b": One()}), CallForm(2, 3, ("x", "y", "mask", "scale"))),
    ],
)
def test_plain_networks_are_known_by_their_signature(network: nn.Module, expected: CallForm) -> None:
    assert call_form(network) == expected


def test_split_and_branched_networks_are_known_by_their_example() -> None:
    tensor = branchnet.split(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)), torch.rand(2, 3, 4, 4))
    assert call_form(tensor) == CallForm(1, 1, dims=4, floating=torch.float32)
    ids = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4)}
    named = branchnet.split(Language(), ids)
    expected = CallForm(names=tuple(ids), complete=True, dims=2, floating=torch.float32)
    assert call_form(named) == expected
    tree = branchnet.Tree.shared(["a", "b"], len(named.locations))
    made = branchnet.build(
        tree, branchnet.split_all({"a": Language(), "b": Language()}, ids, locations=named.locations), init="donor"
    )
    assert call_form(made) == expected


def test_bytes_are_left_to_networks_that_were_split_with_bytes() -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.float() / 255))

    assert call_form(branchnet.split(Scaling(), torch.ones(2, 2, dtype=torch.uint8))).takes_bytes
