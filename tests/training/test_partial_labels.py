"""Labels that are missing: each task's loss is the mean over the samples that have one, as a plain loop computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import DataError, TrainingError
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.schedules import cosine

TASKS = ("a", "b")
X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = {"a": X[:, :2].sum(1, keepdim=True), "b": X[:, 2:4] - X[:, :2]}
LOSSES: dict[str, Callable[[Any, Any], Tensor]] = {"a": F.mse_loss, "b": F.l1_loss}
PLAIN: dict[str, Any] = {"learning_rate": 1e-2, "keep": "last", "progress": False, "clip": None}


def single(outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)).double().float()


def branched() -> BranchedNetwork:
    networks = {"a": single(1, 0), "b": single(2, 1)}
    return branchnet.build(Tree.shared(TASKS, 1), networks, example=X[:2], locations=["1"], init="donor")


def with_missing(seed: int, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = {}
    for task, values in Y.items():
        missing = torch.rand(len(X), generator=generator) < share
        missing[0] = False
        labels[task] = values.masked_fill(missing[:, None], torch.nan)
    return labels


class Rows(Dataset[Any]):
    """Samples that name only the labels that they have, or None for those that they lack."""

    def __init__(self, labels: dict[str, Tensor], *, none: bool) -> None:
        self.labels, self.none = labels, none

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> Any:
        own = {task: values[number] for task, values in self.labels.items()}
        known = {task: value for task, value in own.items() if not value.isnan().all()}
        return X[number], {task: known.get(task) for task in own} if self.none else known


def by_hand(
    labels: dict[str, Tensor], steps: int, batch_size: int, accumulate: int = 1, kind: Any = torch.optim.AdamW
) -> BranchedNetwork:
    """AdamW on the sum over tasks of the mean loss over known labels, in plain PyTorch."""
    network = branched().train()
    optimizer = kind(network.parameters(), lr=1e-2, weight_decay=1e-4 if kind is torch.optim.AdamW else 0.0)
    for step in range(steps):
        parts = [sample_indices(step * accumulate + k, len(X), batch_size, 0) for k in range(accumulate)]
        index = torch.cat(parts)
        optimizer.param_groups[0]["lr"] = 1e-2 * cosine(step, steps)
        optimizer.zero_grad()
        outputs, total = network(X[index]), torch.zeros(())
        for task, values in labels.items():
            known = ~values[index].isnan().any(1)
            if known.any():
                total = total + LOSSES[task](outputs[task][known], values[index][known])
        if total.requires_grad:
            total.backward()
        optimizer.step()
    return network.eval()


def assert_same(one: nn.Module, other: nn.Module, *, atol: float = 1e-6) -> None:
    for (name, found), (_, expected) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5, msg=name)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.9), batch_size=st.sampled_from([3, 8, 16]))
def test_losses_are_means_over_the_samples_with_a_label(seed: int, share: float, batch_size: int) -> None:
    labels = with_missing(seed, share)
    network = branched()
    branchnet.fit(network, (X, labels), LOSSES, steps=6, batch_size=batch_size, **PLAIN)
    assert_same(network, by_hand(labels, 6, batch_size))


@pytest.mark.parametrize("none", [False, True])
def test_samples_may_leave_a_task_out_or_give_none(none: bool) -> None:
    labels = with_missing(3, 0.5)
    network = branched()
    history = branchnet.fit(network, Rows(labels, none=none), LOSSES, steps=6, batch_size=2, **PLAIN)
    expected = by_hand(labels, 6, 2)
    assert_same(network, expected)
    order = [sample_indices(step, len(X), 2, 0) for step in range(6)]
    for task, values in labels.items():
        without = [bool(values[index].isnan().all()) for index in order]
        assert [loss != loss for loss in history.losses[task]] == without


def test_a_task_without_labels_in_a_batch_is_not_run() -> None:
    labels = {"a": Y["a"], "b": Y["b"].clone()}
    labels["b"][sample_indices(0, len(X), 8, 0)] = torch.nan
    network, runs = branched(), []
    network.heads[1].register_forward_hook(lambda *_: runs.append(network.training))
    branchnet.fit(network, (X, labels), LOSSES, steps=1, batch_size=8, **PLAIN)
    assert True not in runs


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), accumulate=st.sampled_from([2, 3]))
def test_accumulated_batches_are_one_large_batch_whatever_is_missing(seed: int, accumulate: int) -> None:
    labels = with_missing(seed, 0.5)
    network = branched()
    plain = torch.optim.SGD  # AdamW makes whole steps of gradients that are 0 but for rounding
    branchnet.fit(network, (X, labels), LOSSES, steps=3, batch_size=4, accumulate=accumulate, optimizer=plain, **PLAIN)
    assert_same(network, by_hand(labels, 3, 4, accumulate, plain))


def test_a_task_that_has_no_label_at_all_is_named() -> None:
    labels = {"a": Y["a"], "b": torch.full_like(Y["b"], torch.nan)}
    for keep in ("last", "best"):
        with pytest.raises(DataError, match=r"samples lack labels of \['b'\]"):
            branchnet.fit(branched(), (X, labels), LOSSES, **(PLAIN | {"steps": 2, "keep": keep}))
    with pytest.raises(TrainingError, match="task 'b' lacks labels"):
        branchnet.fit(branched(), (X, {"a": Y["a"], "b": None}), LOSSES, steps=2, **PLAIN)


def test_data_sets_of_their_own_train_their_tasks_as_written_by_hand() -> None:
    own = {"a": TensorDataset(X[:16], Y["a"][:16]), "b": DataLoader(TensorDataset(X[16:], Y["b"][16:]), 8)}
    network, expected = branched(), branched().train()
    branchnet.fit(network, own, LOSSES, steps=4, batch_size=8, **PLAIN)
    optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=1e-4)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-2 * cosine(step, 4)
        optimizer.zero_grad()
        first = sample_indices(step, 16, 8, 0)
        second = slice(16 + 8 * step, 24 + 8 * step)
        loss = F.mse_loss(expected(X[first], ["a"])["a"], Y["a"][first])
        (loss + F.l1_loss(expected(X[second], ["b"])["b"], Y["b"][second])).backward()
        optimizer.step()
    assert_same(network, expected)


def test_tasks_take_turns_or_are_drawn_by_their_size() -> None:
    own = {"a": TensorDataset(X[:8], Y["a"][:8]), "b": TensorDataset(X[8:], Y["b"][8:])}
    history = branchnet.fit(branched(), own, LOSSES, steps=6, batch_size=4, mix="round_robin", **PLAIN)
    assert [loss == loss for loss in history.losses["a"]] == [True, False] * 3
    assert [loss == loss for loss in history.losses["b"]] == [False, True] * 3
    history = branchnet.fit(branched(), own, LOSSES, steps=300, batch_size=4, mix="proportional", **PLAIN)
    drawn = sum(loss == loss for loss in history.losses["a"]) / 300
    assert drawn == pytest.approx(8 / 48, abs=4 * (8 / 48 * 40 / 48 / 300) ** 0.5)  # four standard deviations
    with pytest.raises(TrainingError, match="mix='alternate'; expected one of max_size_cycle"):
        branchnet.fit(branched(), own, LOSSES, steps=1, mix="alternate", **PLAIN)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"\['b'\] have a loss and no data"):
        branchnet.fit(branched(), {"a": own["a"]}, LOSSES, steps=1, **PLAIN)


def test_the_old_call_works_and_says_when_it_ends() -> None:
    old, new = branched(), branched()
    with pytest.warns(DeprecationWarning, match="ends with 0.3"):
        branchnet.fit(old, X, Y, LOSSES, steps=2, batch_size=8, **PLAIN)
    branchnet.fit(new, (X, Y), LOSSES, steps=2, batch_size=8, **PLAIN)
    assert_same(old, new, atol=0)


def test_tasks_without_labels_may_learn_from_their_networks() -> None:
    teacher = single(2, 7)
    network, expected = branched(), branched().train()
    history = branchnet.fit(
        network, (X, {"a": Y["a"]}), {"a": F.mse_loss}, teachers={"b": teacher}, steps=5, batch_size=8, **PLAIN
    )
    assert set(history.losses) == {"a", "b"}
    with torch.no_grad():
        wanted = teacher(X)
    spread = wanted.var(0, correction=0).mean()
    optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=1e-4)
    for step in range(5):
        index = sample_indices(step, len(X), 8, 0)
        optimizer.param_groups[0]["lr"] = 1e-2 * cosine(step, 5)
        optimizer.zero_grad()
        outputs = expected(X[index])
        (F.mse_loss(outputs["a"], Y["a"][index]) + (outputs["b"] - wanted[index]).square().mean() / spread).backward()
        optimizer.step()
    assert_same(network, expected)
    given: dict[str, Any] = {"steps": 1, **PLAIN}
    with pytest.raises(TrainingError, match=r"\['b'\] have a teacher and a loss"):
        branchnet.fit(branched(), (X, Y), LOSSES, teachers={"b": teacher}, **given)
    with pytest.raises(TrainingError, match=r"teachers name \['c'\]"):
        branchnet.fit(branched(), (X, Y), LOSSES, teachers={"c": teacher}, **given)
