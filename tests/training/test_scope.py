"""Training stitches or heads alone: nothing else changes, and a task with one donor stays exactly as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import TrainingError

TASKS = ("a", "b", "c")
X = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
TREE = Tree(TASKS, [[TASKS], [("a",), ("b", "c")]])


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 10), nn.Dropout(0.2), nn.Linear(10, 2)
        )
        made.train()(X * (1 + seed))
    return made.eval()


DONORS = {task: network(seed) for seed, task in enumerate(TASKS)}


def branched(**how: Any) -> BranchedNetwork:
    return branchnet.build(TREE, branchnet.split_all(DONORS, X[:2], locations=["2", "4"]), **how).eval()


def stitched() -> BranchedNetwork:
    return branched(init="stitch", probe=X)


def distill(net: BranchedNetwork, **how: Any) -> None:
    branchnet.distill(net, DONORS, X, steps=12, batch_size=32, progress=False, keep="last", **how)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def test_stitches_alone_change_and_a_donors_own_task_not_at_all() -> None:
    net = stitched()
    before, outputs = state(net), {task: output.detach() for task, output in net(X).items()}
    ids = {id(parameter) for stitch in net.stitches.values() for parameter in stitch.parameters()}
    names = {name for name, parameter in net.named_parameters() if id(parameter) in ids}
    assert {child for _, child in net.stitches} == {"nodes.1.1", "heads.2"} and names
    distill(net, scope="stitches")
    assert changed(net, before) == names
    assert torch.equal(net(X)["a"], outputs["a"]) and torch.equal(net(X)["a"], DONORS["a"](X))
    assert not torch.equal(net(X)["b"], outputs["b"])
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())


def test_training_stitches_brings_the_outputs_nearer() -> None:
    net = stitched()

    def distance() -> float:
        with torch.no_grad():
            return sum(float((net(X)[task] - DONORS[task](X)).square().mean()) for task in TASKS)

    before = distance()
    branchnet.distill(
        net, DONORS, X, steps=200, batch_size=64, scope="stitches", learning_rate=1e-2, progress=False, validation=X
    )
    assert distance() < before


def test_heads_alone_change_but_for_frozen_ones() -> None:
    net = stitched()
    before = state(net)
    assert any(child == "heads.2" for _, child in net.stitches)
    stitches = {id(tensor) for stitch in net.stitches.values() for tensor in stitch.state_dict(keep_vars=True).values()}
    net.freeze("heads.0")
    distill(net, scope="heads")
    found = changed(net, before)
    assert found and all(name.startswith(("heads.1.", "heads.2.")) for name in found)
    assert not any(id(tensor) in stitches for name, tensor in net.state_dict(keep_vars=True).items() if name in found)


def test_scopes_that_train_nothing_are_refused() -> None:
    with pytest.raises(TrainingError, match="scope is 'stiches'; expected one of all, stitches, heads"):
        distill(branched(init="donor"), scope="stiches")
    with pytest.raises(TrainingError, match="no stitching layers; expected one built with init='stitch'"):
        distill(branched(init="donor"), scope="stitches")
    net = branched(init="donor")
    before = [parameter.requires_grad for parameter in net.parameters()]
    with pytest.raises(TrainingError):
        distill(net, scope="stitches")
    assert [parameter.requires_grad for parameter in net.parameters()] == before and not net.training


def test_stitches_of_a_network_that_can_only_be_evaluated_can_be_trained() -> None:
    net = stitched()
    net.eval_only = "traced without dropout"
    before = state(net)
    for scope in ("all", "heads"):
        with pytest.raises(TrainingError, match="traced without dropout"):
            distill(net, scope=scope)
    distill(net, scope="stitches")
    assert changed(net, before)


def test_folded_stitches_are_left_out_and_named_where_there_are_no_others() -> None:
    net = stitched()
    first, *others = net.stitches.values()
    assert others
    first.maps.clear()
    first.folded = True
    before = state(net)
    distill(net, scope="stitches")
    assert changed(net, before)
    for stitch in others:
        stitch.maps.clear()
        stitch.folded = True
    with pytest.raises(TrainingError, match=f"all {1 + len(others)} stitching layers of the network are folded"):
        distill(net, scope="stitches")
