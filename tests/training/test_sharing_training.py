"""Training tasks that are computed one at a time: losses fall on held-out samples, and what is shared stays shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Sharing, TrainingError
from branchnet.builder import SharingNetwork

TASKS = ("a", "b", "c")
SHARING = Sharing(TASKS, [[["a", "b"], ["c"]], [["a"], ["b", "c"]]])
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, 1)
    ).eval()


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {task: network() for task in TASKS}


@pytest.fixture
def sharing(networks: dict[str, nn.Module]) -> SharingNetwork:
    return branchnet.build(SHARING, networks, example=X[:2], locations=["0", "1"])


def distances(sharing: SharingNetwork, networks: dict[str, nn.Module]) -> dict[str, float]:
    with torch.no_grad():
        return {
            task: float((sharing(HELD_OUT, task=task) - networks[task](HELD_OUT)).square().mean()) for task in TASKS
        }


def assert_still_shared(sharing: SharingNetwork) -> None:
    assert sharing.path("a").stages[0] is sharing.path("b").stages[0]
    assert sharing.path("b").stages[1] is sharing.path("c").stages[1]
    assert sharing.path("a").stages[1] is not sharing.path("b").stages[1]
    assert len(list(sharing.parameters())) == 2 * 2 * 2 + 3 * 2


def test_distillation_brings_tasks_nearer_to_their_networks(
    sharing: SharingNetwork, networks: dict[str, nn.Module]
) -> None:
    before = distances(sharing, networks)
    weights = [p.clone() for p in sharing.nodes[0][0].parameters()]
    history = branchnet.distill(sharing, networks, X, steps=150, learning_rate=1e-2, progress=False)
    after = distances(sharing, networks)
    assert sum(after.values()) < 0.5 * sum(before.values())
    assert after["b"] < before["b"] and after["c"] < before["c"]
    assert set(history.losses) == set(TASKS) and all(len(losses) == 150 for losses in history.losses.values())
    assert not sharing.training
    assert_still_shared(sharing)
    moved = zip(weights, sharing.nodes[0][0].parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)


def test_the_first_step_is_that_of_the_summed_losses_by_hand(
    sharing: SharingNetwork, networks: dict[str, nn.Module]
) -> None:
    """Plain gradient descent against a network written out with the shared layers in it."""
    import copy

    by_hand = copy.deepcopy(sharing)
    labels = {task: networks[task](X).detach() for task in TASKS}
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    sum(nn.functional.mse_loss(by_hand.path(task)(X), labels[task]) for task in TASKS).backward()
    optimizer.step()
    branchnet.fit(
        sharing, (X, labels), dict.fromkeys(TASKS, nn.functional.mse_loss), steps=1, batch_size=len(X), clip=None,
        learning_rate=0.1, optimizer=lambda groups: torch.optim.SGD(groups), schedule="constant", keep="last",
        progress=False,
    )  # fmt: skip
    for (name, one), other in zip(sharing.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_fit_takes_samples_of_one_task_each(sharing: SharingNetwork) -> None:
    def target(x: Tensor, task: str) -> Tensor:
        return x[:, TASKS.index(task)].sin().unsqueeze(1)

    def losses() -> dict[str, float]:
        with torch.no_grad():
            return {
                task: float((sharing(HELD_OUT, task=task) - target(HELD_OUT, task)).square().mean()) for task in TASKS
            }

    before = losses()
    data = {
        task: torch.utils.data.TensorDataset(own, target(own, task))
        for task, own in zip(TASKS, X[:255].split(85), strict=True)
    }
    branchnet.fit(
        sharing, data, dict.fromkeys(TASKS, nn.functional.mse_loss), steps=200, learning_rate=1e-2, progress=False
    )
    after = losses()
    assert all(after[task] < 0.5 * before[task] for task in TASKS)
    assert_still_shared(sharing)


def test_a_task_that_needs_no_training_does_not_freeze_what_it_shares(
    sharing: SharingNetwork, networks: dict[str, nn.Module]
) -> None:
    assert distances(sharing, networks)["a"] == 0  # its path is its own network's
    branchnet.distill(sharing, networks, X, steps=5, learning_rate=1e-2, keep="last", progress=False)
    assert distances(sharing, networks)["a"] > 0


@pytest.mark.parametrize(
    "options", [{"divide_rate": True}, {"scope": "first-private-stage"}, {"match": "features"}, {"scope": "stitches"}]
)
def test_what_needs_nodes_of_a_tree_is_refused(
    sharing: SharingNetwork, networks: dict[str, nn.Module], options: dict[str, Any]
) -> None:
    with pytest.raises(TrainingError, match=f"{next(iter(options))}=.* needs nested sharing"):
        branchnet.distill(sharing, networks, X, steps=1, progress=False, **options)
