"""Devices are refused before anything is moved, with what to do instead."""

from __future__ import annotations

import pytest
import torch

import branchnet
from branchnet.errors import DataError
from branchnet.utils.installed_torch.devices import usable_device


def test_devices_that_are_there() -> None:
    assert usable_device("cpu") == torch.device("cpu") == usable_device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda:99", r"device cuda:99: this machine has no such device"),
        ("toaster", r"device toaster: this machine has no such device"),
        ("mps", r"device mps: Apple's MPS has no float64.*expected 'cpu' or 'cuda'"),
    ],
)
def test_devices_that_cannot_be_used(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        usable_device(name)
    networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    tree = branchnet.Tree.shared(["a", "b"], 1)
    branched = branchnet.build(tree, networks, example=torch.rand(2, 4), locations=["0"], init="donor").eval()
    with pytest.raises(DataError, match=said):
        branchnet.runtime(branched, name)
    assert next(branched.parameters()).device == torch.device("cpu")
