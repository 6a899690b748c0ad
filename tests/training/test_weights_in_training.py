"""Weightings inside `fit` and `distill` are what the same weighting is in a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import TrainingError
from branchnet.training import weighting_of
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.schedules import cosine

TASKS = ("a", "b", "c")
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = {task: X[:, k : k + 2] * (k + 1) for k, task in enumerate(TASKS)}


def single(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


STAGED = branchnet.split_all({task: single(k) for k, task in enumerate(TASKS)}, X[:2], locations=["1", "3"])


def branched() -> BranchedNetwork:
    return branchnet.build(Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]]), STAGED, init="donor")


@pytest.mark.parametrize("weights", ["equal", {"a": 1.0, "b": 0.5, "c": 2.0}, "uncertainty", "dwa", "famo", "nash-mtl"])
def test_a_weighting_acts_as_in_a_plain_loop(weights: Any) -> None:
    found, expected = branched(), branched().train()
    branchnet.fit(
        found, (X, LABELS), dict.fromkeys(TASKS, F.mse_loss), weights=weights, steps=8, batch_size=10,
        learning_rate=1e-2, keep="last", clip=None, progress=False,
    )  # fmt: skip
    weighting = weighting_of(weights, TASKS, expected)
    groups = [{"params": list(expected.parameters()), "weight_decay": 1e-4}]
    groups.append({"params": list(weighting.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    for step in range(8):
        index = sample_indices(step, 40, 10, 0)
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = (1e-3 if number else 1e-2) * cosine(step, 8)  # weights have a rate of their own

        def losses(index: torch.Tensor = index) -> dict[str, torch.Tensor]:
            return {task: F.mse_loss(y, LABELS[task][index]) for task, y in expected(X[index]).items()}

        optimizer.zero_grad()
        weighting.backward(expected, losses())
        optimizer.step()
        weighting.after_step(losses)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_state_of_a_weighting_is_resumed(tmp_path: Any) -> None:
    def train(checkpoint: Any, stop: int | None) -> tuple[BranchedNetwork, Any]:
        net = branched()

        def interrupt(event: Any) -> None:
            if event.kind == "step" and event.step == stop:
                raise KeyboardInterrupt

        history = branchnet.distill(
            net, STAGED, X, weights="uncertainty", steps=9, batch_size=10, learning_rate=1e-2, keep="last",
            progress=False, checkpoint=checkpoint, checkpoint_every=1, callbacks=[interrupt],
        )  # fmt: skip
        return net, history

    whole, expected = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 5)
    resumed, history = train(tmp_path / "run", None)
    assert history.losses == expected.losses and history.resumed_at == 4
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_unknown_weightings_are_named() -> None:
    with pytest.raises(TrainingError, match="weights='best'"):
        branchnet.distill(branched(), STAGED, X, weights="best", steps=1, progress=False)
