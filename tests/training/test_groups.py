"""Learning rates by node; errors of training one network alone speak of no task."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import branchnet
from branchnet import Tree
from branchnet.errors import TrainingError
from branchnet.training import node_groups
from branchnet.training.optimization.groups import trained_tasks
from branchnet.training.resuming.run_identity import content_hash

TASKS = ("a", "b")
X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


def branched() -> branchnet.BranchedNetwork:
    made: dict[str, nn.Module] = {t: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)) for t in TASKS}
    return branchnet.build(
        Tree(TASKS, [[TASKS], [("a",), ("b",)]]), branchnet.split_all(made, X, locations=["0", "1"]), init="donor"
    )


def test_a_rate_can_depend_on_the_node() -> None:
    groups = node_groups(branched(), lambda node: 1e-3 / len(node.tasks))
    assert [(sum(p.numel() for p in group.parameters), group.learning_rate) for group in groups] == [
        (16, 5e-4), (20, 1e-3), (20, 1e-3), (5, 1e-3), (5, 1e-3),
    ]  # fmt: skip


def test_a_node_of_rate_zero_and_a_frozen_one_stay_as_they_are() -> None:
    net = branched()
    net.freeze("nodes.1.0")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    labels = dict.fromkeys(TASKS, X[:, :1])
    branchnet.fit(
        net, (X, labels), dict.fromkeys(TASKS, mse_loss), steps=3, batch_size=8, progress=False,
        learning_rate=lambda node: 0.0 if node.id == "nodes.0.0" else 1e-2,
    )  # fmt: skip
    changed = {
        name.rpartition(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert {".".join(name.split(".")[:3]).removesuffix(".2") for name in changed} == {"nodes.1.1", "heads.0", "heads.1"}


def test_tasks_that_are_frozen_throughout_need_no_labels_and_no_donor() -> None:
    net = branched()
    net.freeze("a")
    before = net.eval()(X)["a"]
    assert trained_tasks(net) == ("b",)
    branchnet.fit(net, (X, {"b": X[:, :1]}), {"b": mse_loss}, steps=3, batch_size=8, progress=False)
    donor = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    history = branchnet.distill(net, {"b": donor}, X, steps=3, batch_size=8, progress=False)
    assert set(history.losses) == {"b"}
    assert torch.equal(net(X)["a"], before)
    net.freeze("b")
    with pytest.raises(TrainingError, match="expected one to train"):
        branchnet.distill(net, {"b": donor}, X, steps=3, progress=False)


def test_a_checkpoint_knows_which_nodes_are_frozen() -> None:
    net = branched()
    assert content_hash(net, X, {"heads.0"}) != content_hash(net, X, {"heads.1"})
    assert content_hash(net, X, {"heads.0", "heads.1"}) == content_hash(net, X, ["heads.1", "heads.0"])


def test_a_checkpoint_knows_the_weights_and_samples_that_it_was_started_from() -> None:
    net, other = branched(), branched()
    assert content_hash(net, X[:3]) == content_hash(net, X[:3].clone()) != content_hash(net, X[1:4])
    assert content_hash(net, X[:3]) != content_hash(other, X[:3])
    other.load_state_dict(net.state_dict())
    assert content_hash(net, X[:3]) == content_hash(other, X[:3])


@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_a_rate_that_is_none_names_the_node(rate: float) -> None:
    with pytest.raises(TrainingError, match=r"learning rate of nodes\.0\.0"):
        node_groups(branched(), rate)


def test_a_function_of_the_node_needs_a_branched_network() -> None:
    with pytest.raises(TrainingError, match="not branched"):
        branchnet.fit(nn.Linear(3, 1), (X, X[:, :1]), mse_loss, steps=1, progress=False, learning_rate=lambda node: 1.0)


def test_errors_of_one_network_name_no_task() -> None:
    with pytest.raises(TrainingError, match=r"^8 labels were given; expected 16, one for each sample$"):
        branchnet.fit(nn.Linear(3, 1), (X, X[:8, :1]), mse_loss, steps=1, progress=False)

    def infinite(output: Tensor, labels: Tensor) -> Tensor:
        return output.sum() * math.inf

    with pytest.raises(TrainingError, match=r"^the loss became (-?inf|nan) at step 0"):
        branchnet.fit(nn.Linear(3, 1), (X, X[:, :1]), infinite, steps=1, learning_rate=1.0, keep="last", progress=False)
