"""Selections of whole networks against chains composed by hand: every task of a set is there, each is served once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import branchnet
from branchnet.builder import GroupedNetworks
from branchnet.clustering import Grouping, Selection
from branchnet.errors import BuildError
from tests.builder.toys import KINDS, images, split_networks

TASKS = tuple(KINDS)
A, B, C, D = TASKS
SETS = ({A: 0.1, B: 0.2}, {B: 0.5, C: 0.3, D: 0.4})


def selection() -> Selection:
    """Networks of a, b and of b, c, d; b is served by the first and trained along in the second."""
    return branchnet.select_networks([*SETS, {A: 9.0}], [1, 1, 1], 2)


def by_hand(donor: str, task: str, x: Tensor) -> Tensor:
    staged = split_networks()
    cut: tuple[Tensor, ...] = (x,)
    for stage in staged[donor].stages:
        cut = stage(*cut)
    return staged[task].head(*cut)  # type: ignore[no-any-return]


def test_a_selection_builds_the_networks_that_were_measured() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    assert isinstance(grouped, GroupedNetworks)
    assert [set(network.tasks) for network in grouped.networks] == [set(one) for one in SETS]
    assert grouped.serving == {A: 0, B: 0, C: 1, D: 1}
    x = images()
    found = grouped(x)
    assert tuple(found) == TASKS
    for task, donor in {A: A, B: A, C: B, D: B}.items():  # the first task of a set gives the weights
        torch.testing.assert_close(found[task], by_hand(donor, task, x), rtol=0, atol=0)
    torch.testing.assert_close(grouped.networks[1](x)[B], by_hand(B, B, x), rtol=0, atol=0)


def test_only_the_serving_network_runs_and_only_the_served_tasks() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    ran: list[int] = []
    for number, network in enumerate(grouped.networks):
        for head in network.heads:
            head.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert tuple(grouped(images(), tasks=[D, B])) == (B, D)
    assert ran == [0, 1]
    ran.clear()
    grouped(images())
    assert ran == [0, 0, 1, 1]
    with pytest.raises(BuildError, match="smell"):
        grouped(images(), tasks=["smell"])


def test_every_network_trains_its_auxiliary_tasks_and_no_other_network() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor").train()
    sum(output.square().mean() for output in grouped.networks[1](images()).values()).backward()
    assert all(parameter.grad is not None for parameter in grouped.networks[1].parameters())
    assert all(parameter.grad is None for parameter in grouped.networks[0].parameters())
    pointers = [{p.data_ptr() for p in network.parameters()} for network in grouped.networks]
    assert not pointers[0] & pointers[1]


def test_a_grouping_builds_alike() -> None:
    effects = np.array([[0, 0.5, -1, -1], [0.4, 0, 0.3, -1], [-1, -1, 0, 0.6], [-1, -1, 0.2, 0]])
    found = branchnet.group_by_affinity(effects, 3, tasks=TASKS)
    grouped = branchnet.build(found, split_networks(), init="random", seed=3)
    assert [frozenset(network.tasks) for network in grouped.networks] == list(found.groups)
    assert grouped.tasks == TASKS
    assert all(found.groups[index] >= {task} for task, index in grouped.serving.items())
    assert found.score == pytest.approx(
        np.mean([np.mean([effects[TASKS.index(o), TASKS.index(t)] for o in found.groups[found.assignment[t]] - {t}])
                 for t in TASKS])
    )  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    staged = split_networks()
    with pytest.raises(BuildError, match=f"tasks \\['{D}'\\] without a network"):
        branchnet.build(selection(), {task: staged[task] for task in (A, B, C)}, init="donor")
    with pytest.raises(BuildError, match="expected donors=None"):
        branchnet.build(selection(), staged, donors=((A,),), init="donor")
    grouping = Grouping((frozenset((A, B)),), {A: 0, B: 0}, 0.0)
    network = branchnet.build(grouping, staged, init="donor").networks[0]
    with pytest.raises(BuildError, match="served by network 1"):
        GroupedNetworks([network], {A: 1})
    with pytest.raises(BuildError, match="served by network 0"):
        GroupedNetworks([network], {C: 0})
