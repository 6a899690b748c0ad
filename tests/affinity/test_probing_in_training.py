"""Probing every k-th step of joint training, against a training loop written by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import branchnet
from branchnet.errors import AffinityError

LOSSES = {"sum": mse_loss, "first": mse_loss}
RATE = 0.05


def made() -> tuple[nn.Sequential, dict[str, nn.Module]]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    return trunk, {"sum": nn.Linear(8, 1), "first": nn.Linear(8, 1)}


def batches(count: int) -> list[tuple[torch.Tensor, dict[str, torch.Tensor | None]]]:
    x = torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(1))
    found = [(one, {"sum": one.sum(1, keepdim=True), "first": one[:, :1]}) for one in x]
    return [(one, {**targets, "sum": None} if number == 1 else targets) for number, (one, targets) in enumerate(found)]


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_third_step_of_training_is_probed(momentum: float | None) -> None:
    trunk, heads = made()
    own_trunk, own_heads = copy.deepcopy((trunk, heads))

    def optimizer_of(one: nn.Module, others: dict[str, nn.Module]) -> torch.optim.SGD:
        parameters = [p for module in (one, *others.values()) for p in module.parameters()]
        return torch.optim.SGD(parameters, lr=RATE, momentum=momentum or 0.0)

    def how(one: nn.Module, others: dict[str, nn.Module], own: torch.optim.SGD) -> dict:
        return {"learning_rate": RATE} if momentum is None else {"optimizer": own}

    data = batches(7)
    given = how(trunk, heads, optimizer_of(trunk, heads))
    found = branchnet.gradient_affinity(trunk, data, LOSSES, heads=heads, every=3, bootstrap=0, **given)
    optimizer = optimizer_of(own_trunk, own_heads)
    probed = []
    for number, (x, targets) in enumerate(data):
        if number % 3 == 0:
            given = how(own_trunk, own_heads, optimizer)
            one = branchnet.gradient_affinity(own_trunk, [(x, targets)], LOSSES, heads=own_heads, bootstrap=0, **given)
            probed.append(one.values)
        optimizer.zero_grad()
        features = own_trunk(x)
        sum(mse_loss(own_heads[task](features), y) for task, y in targets.items() if y is not None).backward()
        optimizer.step()
    assert len(probed) == 3
    np.testing.assert_allclose(found.values, np.mean(probed, axis=0), rtol=1e-5, atol=1e-8)
    for mine, theirs in zip((own_trunk, *own_heads.values()), (trunk, *heads.values()), strict=True):
        for name, tensor in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], tensor)


def test_a_branched_network_is_trained_as_its_forward_pass_says() -> None:
    torch.manual_seed(0)
    networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in ("a", "b")}
    x = torch.rand(4, 3, 16, 16)
    tree = branchnet.Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    branched = branchnet.build(tree, networks, example=x, locations=2, init="donor").train()
    own = copy.deepcopy(branched)
    data = [(x, {"a": torch.ones(4, 1, 16, 16), "b": torch.zeros(4, 1, 16, 16)})] * 2
    losses = {"a": mse_loss, "b": mse_loss}
    branchnet.gradient_affinity(branched, data, losses, learning_rate=RATE, every=5, bootstrap=0)
    optimizer = torch.optim.SGD(own.parameters(), lr=RATE)
    for inputs, targets in data:
        optimizer.zero_grad()
        outputs = own(inputs)
        sum(mse_loss(outputs[task], y) for task, y in targets.items()).backward()
        optimizer.step()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(branched.state_dict()[name], tensor, msg=name)


def test_mistakes() -> None:
    trunk, heads = made()
    with pytest.raises(AffinityError, match="every is 0; expected 1 or more"):
        branchnet.gradient_affinity(trunk, batches(1), LOSSES, heads=heads, learning_rate=RATE, every=0)
    with pytest.raises(AffinityError, match="either learning_rate or optimizer"):
        branchnet.gradient_affinity(trunk, batches(1), LOSSES, heads=heads, every=2)
