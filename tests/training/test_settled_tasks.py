"""Networks that have nothing to learn from their teachers are left as they are."""

import pytest
import torch
from torch import nn

import branchnet
from branchnet import Tree

TASKS = ["a", "b", "c"]
X = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))


def networks():
    torch.manual_seed(3)
    return {
        task: nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)
        )
        for task in TASKS
    }


def apart(depth_of_sharing):
    return Tree(TASKS, [[["a", "b"], ["c"]]] * depth_of_sharing + [[["a"], ["b"], ["c"]]] * (2 - depth_of_sharing))


@pytest.mark.parametrize("rate", ["auto", 1e-2])
def test_a_network_of_its_own_stays_bit_for_bit_while_others_are_trained(rate):
    donors = {task: network.eval() for task, network in networks().items()}
    staged = branchnet.split_all(donors, X[:2], locations=["2", "4"])
    branched = branchnet.build(apart(2), staged, init="donor", donors=[["a", "c"], ["a", "c"]])
    before = {name: tensor.clone() for name, tensor in branched.state_dict().items()}
    alone = branched(X)["c"].clone()
    history = branchnet.distill(branched, donors, X, steps=12, batch_size=16, learning_rate=rate, progress=False)
    assert set(history.losses) == {"a", "b"}  # c is neither run nor judged
    assert torch.equal(branched(X)["c"], alone)
    moved = [name for name, tensor in branched.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and branched.frozen == frozenset() and all(p.requires_grad for p in branched.parameters())
    own = {
        id(t)
        for node in branched.members()
        if node.tasks == ("c",)
        for t in node.module.state_dict(keep_vars=True).values()
    }
    assert not any(id(tensor) in own for name, tensor in branched.state_dict(keep_vars=True).items() if name in moved)


def test_a_donor_that_shares_is_trained_with_the_others():
    donors = {task: network.eval() for task, network in networks().items()}
    staged = branchnet.split_all(donors, X[:2], locations=["2", "4"])
    shared = branchnet.build(Tree.shared(TASKS, 2), staged, init="donor")
    history = branchnet.distill(shared, donors, X, steps=3, batch_size=16, progress=False)
    assert set(history.losses) == set(TASKS)


def test_where_nothing_is_left_to_learn_all_is_trained_as_asked():
    donors = {task: network.eval() for task, network in networks().items()}
    staged = branchnet.split_all(donors, X[:2], locations=["2", "4"])
    separate = branchnet.build(Tree.separate(TASKS, 2), staged, init="donor")
    history = branchnet.distill(separate, donors, X, steps=3, batch_size=16, progress=False)
    assert set(history.losses) == set(TASKS) and not history.worse


def test_weights_of_all_tasks_are_taken_whether_or_not_one_is_settled():
    donors = {task: network.eval() for task, network in networks().items()}
    staged = branchnet.split_all(donors, X[:2], locations=["2", "4"])
    branched = branchnet.build(apart(2), staged, init="donor", donors=[["a", "c"], ["a", "c"]])
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    history = branchnet.distill(branched, donors, X, steps=3, batch_size=16, weights=weights, progress=False)
    assert set(history.losses) == {"a", "b"}
    made = branchnet.training.weighting_of("uncertainty", TASKS, branched)
    history = branchnet.distill(branched, donors, X, steps=3, batch_size=16, weights=made, progress=False)
    assert set(history.losses) == set(TASKS)
