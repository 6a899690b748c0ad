"""The state that is kept is the best by held-out samples, of all that were measured, the first one included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import CheckpointError, TrainingError
from branchnet.training import History
from branchnet.training.optimization.choosing.best_state import BestState
from branchnet.training.optimization.schedules import SCHEDULES, cosine

TASKS = ("a", "b", "c")
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
TREE = Tree(TASKS, [[TASKS], [("a",), ("b", "c")]])


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 2)).eval()


DONORS = {task: network(seed) for seed, task in enumerate(TASKS)}


def branched() -> BranchedNetwork:
    return branchnet.build(TREE, branchnet.split_all(DONORS, X[:2], locations=["1", "3"]), init="donor").eval()


def distill(net: BranchedNetwork, **others: Any) -> History:
    given: dict[str, Any] = {"steps": 20, "batch_size": 16, "learning_rate": 3e-2, "every": 3, "validation": HELD_OUT}
    return branchnet.distill(net, DONORS, X, progress=False, **given | others)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def held_out_losses(net: BranchedNetwork) -> dict[str, float]:
    """Squared error on the held-out inputs by the variance of the donor's outputs on the training inputs."""
    found = {}
    with torch.no_grad():
        for task, donor in DONORS.items():
            error = (net(HELD_OUT)[task] - donor(HELD_OUT)).square().mean()
            found[task] = float(error / donor(X).var(0, correction=0).mean())
    return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[dict[str, float], dict[str, Tensor]]]:
    """Losses and state at every step at which the network is measured."""
    recorded: dict[int, tuple[dict[str, float], dict[str, Tensor]]] = {}
    real = BestState.keep

    def keep(self: BestState, step: int, losses: Mapping[str, float], judge: Any) -> None:
        net = self.network[0]
        assert isinstance(net, BranchedNetwork)
        recorded[step] = held_out_losses(net), state(net)
        real(self, step, losses, judge)

    monkeypatch.setattr(BestState, "keep", keep)
    return recorded


@pytest.mark.parametrize("rate", [1e-3, 3e-2, 0.3])
def test_the_kept_state_is_the_best_of_those_measured(
    seen: dict[int, tuple[dict[str, float], dict[str, Tensor]]], rate: float
) -> None:
    net = branched()
    history = distill(net, learning_rate=rate)
    assert list(seen) == [0, 3, 6, 9, 12, 15, 18, 20]
    first = seen[0][0]

    def harmful(losses: dict[str, float]) -> float:
        return sum(loss + 2 * max(0, loss - first[task] - 0.01) for task, loss in losses.items())

    best = min(seen, key=lambda step: harmful(seen[step][0]))
    assert history.kept_step == best
    assert equal(state(net), seen[best][1])
    assert history.before == pytest.approx(seen[0][0], rel=1e-5)
    assert history.after == pytest.approx(held_out_losses(net), rel=1e-5)


def test_where_training_only_hurts_the_network_stays_bit_exact() -> None:
    net = branched()
    before = state(net)
    history = distill(net, learning_rate=10.0)
    assert history.kept_step == 0 and history.after == history.before
    assert equal(state(net), before)
    assert sum(losses[-1] for losses in history.losses.values()) > sum(losses[0] for losses in history.losses.values())


def test_without_held_out_samples_the_last_state_is_kept() -> None:
    net = branched()
    before = state(net)
    history = distill(net, learning_rate=10.0, validation=None, keep="last")
    assert history.kept_step is None and not history.before and not history.after
    assert not equal(state(net), before)


@pytest.mark.parametrize("interrupted_at", [4, 13])
@pytest.mark.parametrize("rate", [3e-2, 10.0])
def test_an_interrupted_run_keeps_the_state_that_an_uninterrupted_one_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_at: int, rate: float
) -> None:
    whole = branched()
    expected = distill(whole, learning_rate=rate)
    file = tmp_path / "run.pt"

    def interrupting(step: int, steps: int) -> float:
        if step == interrupted_at:
            raise KeyboardInterrupt
        return cosine(step, steps)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(SCHEDULES, "cosine", interrupting)
        distill(branched(), learning_rate=rate, checkpoint=file, checkpoint_seconds=0)
    resumed = branched()
    history = distill(resumed, learning_rate=rate, checkpoint=file, checkpoint_seconds=0)
    assert history.resumed_at == interrupted_at
    assert (history.kept_step, history.before, history.after) == (
        expected.kept_step,
        expected.before,
        expected.after,
    )
    assert equal(state(resumed), state(whole))
    again = branched()  # the finished checkpoint gives the kept state, too
    assert distill(again, learning_rate=rate, checkpoint=file).after == expected.after
    assert equal(state(again), state(whole))


def test_losses_that_are_not_finite_before_training_are_refused() -> None:
    net = branched()
    with torch.no_grad():
        net.heads[1].get_parameter("4.bias").fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"held-out samples are .*nan.* before training; expected finite"):
        distill(net)


@pytest.mark.parametrize(("others", "name"), [({"validation": HELD_OUT + 1}, "validation"), ({"every": 4}, "every")])
def test_a_checkpoint_of_other_held_out_samples_or_steps_between_them_is_refused(
    tmp_path: Path, others: dict[str, Any], name: str
) -> None:
    file = tmp_path / "run.pt"
    distill(branched(), checkpoint=file)
    with pytest.raises(CheckpointError, match=f"other {name};"):
        distill(branched(), checkpoint=file, **others)


@pytest.mark.parametrize("every", [0, -3, 2.5])
def test_steps_between_two_measurements_are_a_whole_number_of_one_or_more(every: Any) -> None:
    with pytest.raises(TrainingError, match=f"every={every}; expected a whole number of 1 or more"):
        distill(branched(), every=every)
