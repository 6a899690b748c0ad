"""Held-out samples are read once and teachers run on them once; a network is judged as it was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import branchnet
from branchnet import Tree
from branchnet.data.samples import Batch, read_samples
from branchnet.training.batchnorm import reestimate_without_harm
from branchnet.training.held_out_samples import KeptBatches
from branchnet.training.matching.recorded_outputs import RecordedOutputs
from branchnet.training.optimization.choosing.held_out_judge import Judge

TASKS = ("a", "b")
X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"steps": 8, "batch_size": 8, "every": 2, "progress": False}


class Counting(Dataset[Any]):
    """Counts how often each sample is read."""

    def __init__(self, rows: Tensor, labels: bool = False) -> None:
        self.rows, self.labels, self.reads = rows, labels, [0] * len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        self.reads[number] += 1
        row = self.rows[number]
        return (row, {"a": row[:1]}) if self.labels else row


def single(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        upper = [nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)]
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), *upper)


def networks() -> dict[str, nn.Module]:
    found = {task: single(number) for number, task in enumerate(TASKS)}
    for net in found.values():
        net.train()
        for _ in range(50):
            net(X)
        net.eval()
    return found


def branched(singles: dict[str, nn.Module]) -> branchnet.BranchedNetwork:
    return branchnet.build(Tree.shared(TASKS, 1), singles, example=X[:2], locations=["2"], init="donor")


@pytest.mark.parametrize("loader", [False, True])
def test_teachers_run_once_on_held_out_samples_which_are_read_once(loader: bool) -> None:
    singles, held = networks(), Counting(X[40:])
    net, seen = branched(singles), list[int]()
    singles["b"].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    validation = DataLoader(held, 4) if loader else held
    history = branchnet.distill(net, singles, X[:40], validation=validation, **QUICK)
    assert len(history.measurements) == 5
    assert held.reads == [1] * 8
    assert sum(seen) == 40 + 8  # recorded on the samples to train on, and once on the others


def test_labelled_validation_samples_are_read_once_and_so_are_those_set_aside() -> None:
    singles = networks()
    held, whole = Counting(X[40:], labels=True), Counting(X, labels=True)
    teachers = {"b": singles["b"]}
    losses = {"a": lambda output, target: F.mse_loss(output[:, :1], target)}
    branchnet.fit(branched(singles), Counting(X[:40], labels=True), losses, teachers=teachers, validation=held, **QUICK)
    assert held.reads == [1] * 8
    branchnet.fit(branched(singles), whole, losses, **QUICK, teachers=teachers, learning_rate=1e-3)
    aside = torch.linspace(0, 47, 4).round().long().tolist()
    assert max(whole.reads[number] for number in aside[1:]) <= 2  # the teachers' spread is of all samples


def test_without_room_they_are_read_and_run_again() -> None:
    singles, held = networks(), Counting(X)
    samples = read_samples(held)
    for limit, expected in ((0, 2), (10**6, 1)):
        held.reads = [0] * len(X)
        kept = KeptBatches(lambda: samples.batches(8, seed=0), limit)
        first, again = list(kept()), list(kept())
        assert held.reads == [expected] * len(X)
        assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(first, again, strict=True))
    expected_outputs = singles["a"](X[:8])
    seen: list[int] = []
    singles["a"].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    teachers = branchnet.Teachers(singles, X[:16], progress=False)
    for limit, expected in ((0, 16), (10**6, 8)):
        seen.clear()
        recorded = RecordedOutputs(teachers, limit)
        for _ in range(2):
            found = recorded.outputs(Batch(X[:8]), ["a"], torch.device("cpu"))["a"]
            torch.testing.assert_close(found, expected_outputs)
        assert sum(seen) == expected
    other = RecordedOutputs(teachers).outputs(Batch(X[8:16]), ["a"], torch.device("cpu"))["a"]
    torch.testing.assert_close(other, singles["a"](X[8:16]))


def test_statistics_that_make_a_task_worse_are_taken_back_where_it_is_served() -> None:
    """A judge that likes the new statistics of one head and not those of the other."""
    singles = networks()
    net = branched(singles)
    given = {name: buffer.clone() for name, buffer in net.named_buffers()}
    tasks = {node.id: node for node in net.members() if node.is_head}

    def moved(task: str) -> bool:
        module = next(node.module for node in tasks.values() if node.tasks == (task,))
        names = [name for name, one in net.named_modules() if one is module]
        return any(not torch.equal(buffer, given[f"{names[0]}.{name}"]) for name, buffer in module.named_buffers())

    donor = next(node.donor for node in net.members())
    foreign = next(task for task in TASKS if task != donor)

    def measure(harmful: bool) -> tuple[dict[str, float], dict[str, float]]:
        return {task: (2.0 if harmful else 0.5) if moved(task) else 1.0 for task in TASKS}, {}

    reestimate_without_harm(net, X, Judge(TASKS, lambda: measure(True)))
    assert all(torch.equal(buffer, given[name]) for name, buffer in net.named_buffers())
    reestimate_without_harm(net, X, Judge(TASKS, lambda: measure(False)))
    assert moved(foreign) and not moved(donor)


def test_before_is_the_network_as_it_was_given() -> None:
    singles = networks()
    net = branched(singles)
    teachers = branchnet.Teachers(singles, X[:40], progress=False)
    with torch.no_grad():
        wanted = {task: singles[task](X[40:]) for task in TASKS}
        expected = {task: float(teachers.losses[task](net(X[40:])[task], wanted[task])) for task in TASKS}
    history = branchnet.distill(net, singles, X[:40], validation=X[40:], learning_rate=1e-5, **QUICK)
    assert history.before == pytest.approx(expected, rel=1e-5)
    assert not any("before" in reason for reason in history.worse.values())
