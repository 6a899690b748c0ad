"""Runs that are resumed, losses with parameters, gradients taken twice, and gradients aggregated node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import CheckpointError
from branchnet.training import backward_per_node

pytestmark = pytest.mark.slow

TASKS = ("class", "ink", "slant", "size")
OUTPUTS = dict(zip(TASKS, (10, 2, 1, 1), strict=True))
LOCATIONS = ["0", "1", "2"]
IMAGES = torch.randn(256, 1, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS: dict[str, Tensor] = {
    task: torch.randn(256, width, generator=torch.Generator().manual_seed(width)) for task, width in OUTPUTS.items()
} | {"class": torch.randint(0, 10, (256,), generator=torch.Generator().manual_seed(1))}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    task: F.cross_entropy if task == "class" else F.mse_loss for task in TASKS
}


def network(task: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in ((1, 8), (8, 12), (12, 16))
        ]
        return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, OUTPUTS[task])))


def networks(*tasks: str, seed: int = 0) -> dict[str, nn.Module]:
    return {task: network(task, seed + number).eval() for number, task in enumerate(tasks)}


def branched(*tasks: str, tree: Tree | None = None) -> BranchedNetwork:
    staged = branchnet.split_all(networks(*tasks), IMAGES[:2], locations=LOCATIONS)
    return branchnet.build(tree or Tree.shared(tasks, 3), staged, init="donor")


class FailingDisk(Dataset[Any]):
    """Images that can be read a number of times, augmented from torch's generator; with labels where there are some."""

    def __init__(self, reads: float = float("inf"), labels: Mapping[str, Tensor] | None = None) -> None:
        self.reads, self.labels = reads, labels

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        self.reads -= 1
        if self.reads < 0:
            raise OSError("no such device")
        image = IMAGES[index] + 0.1 * torch.randn(1, 12, 12)
        return image if self.labels is None else (image, {task: label[index] for task, label in self.labels.items()})


def fitted(file: Path | None, reads: float = float("inf"), **other: Any) -> tuple[BranchedNetwork, Any]:
    net = branched("class", "ink")
    labels = other.get("labels", {task: LABELS[task] for task in net.tasks})
    losses = other.get("losses", {task: LOSSES[task] for task in net.tasks})
    settings: dict[str, Any] = {"steps": 40, "batch_size": 16, "learning_rate": 1e-3, "seed": 3}
    settings |= {"checkpoint": file, "checkpoint_every": 5, "progress": False, "keep": "last"}
    return net, branchnet.fit(net, FailingDisk(reads, labels), losses, **settings)


def test_a_run_is_resumed_to_the_same_weights_and_with_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "run"
    with pytest.raises(Exception, match="no such device"):
        fitted(file, reads=500)
    others: Mapping[str, dict[str, Any]] = {
        "samples": {"labels": {"class": (LABELS["class"] + 1) % 10, "ink": -LABELS["ink"]}},
        "losses": {"losses": {"class": lambda output, label: 3 * F.cross_entropy(output, label), "ink": F.l1_loss}},
    }
    for name, other in others.items():
        with pytest.raises(CheckpointError, match=f"run with other .*{name}"):
            fitted(file, **other)
    resumed, history = fitted(file)
    expected, _ = fitted(None)
    assert history.resumed_at > 0
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_distillation_is_not_resumed_with_other_teachers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 40, "batch_size": 16, "learning_rate": 1e-3, "progress": False}
    settings |= {"checkpoint": tmp_path / "run", "checkpoint_every": 5}
    teachers = networks("class", "ink")
    with pytest.raises(Exception, match="no such device"):
        branchnet.distill(branched("class", "ink"), teachers, FailingDisk(reads=700), **settings)
    assert (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match=r"run with other .*teachers"):
        branchnet.distill(branched("class", "ink"), networks("class", "ink", seed=50), FailingDisk(), **settings)
    assert branchnet.distill(branched("class", "ink"), teachers, FailingDisk(), **settings).resumed_at > 0


class Uncertainty(nn.Module):
    """A loss that learns how uncertain its task is (Kendall, Gal and Cipolla 2018)."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss(output, target) * torch.exp(-self.log_variance) + self.log_variance


def test_parameters_of_losses_are_trained() -> None:
    """Towards the logarithm of their loss, where their own loss is least."""
    losses = {task: Uncertainty(LOSSES[task]) for task in ("class", "ink")}
    labels = {task: LABELS[task] for task in losses}
    settings: dict[str, Any] = {"steps": 30, "batch_size": 64, "learning_rate": 1e-2, "keep": "last", "progress": False}
    branchnet.fit(branched(*losses), (IMAGES, labels), losses, **settings)
    assert losses["class"].log_variance.item() > 0.05  # a loss of about log(10) > 1
    assert abs(losses["ink"].log_variance.item()) > 1e-3


def test_recomputed_stages_allow_what_torchs_checkpoint_allows() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    output = checkpoint(layer, torch.rand(2, 4, requires_grad=True), use_reentrant=False)
    for _ in range(2):
        torch.autograd.grad(output.sum(), list(layer.parameters()), retain_graph=True)
    gradients = []
    for stages in ((), ("1", "2")):
        net = branched("class", "ink").train()
        net.recompute(*stages)
        outputs = net(IMAGES[:32])
        parameters = list(net.nodes.parameters())
        gradients.append(
            [
                torch.autograd.grad(LOSSES[task](outputs[task], LABELS[task][:32]), parameters, retain_graph=True)
                for task in net.tasks
            ]
        )
    for plain, recomputed in zip(*gradients, strict=True):
        assert all(map(torch.equal, plain, recomputed))


HALVES = [["class", "ink"], ["slant", "size"]]


@pytest.mark.parametrize("kind", ["UPGrad", "MGDA", "PCGrad", "CAGrad", "IMTLG", "AlignedMTL"])
def test_each_node_aggregates_the_gradients_of_its_own_tasks(kind: str) -> None:
    """All rows of a node that serves one task are zero but one; MGDA and CAGrad would give nothing at all."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    if kind == "CAGrad":
        pytest.importorskip("cvxpy")
    aggregator = getattr(aggregation, kind)(**({"c": 0.5} if kind == "CAGrad" else {}))
    net = branched(*TASKS, tree=Tree(TASKS, [[list(TASKS)], HALVES, [["class"], ["ink"], ["slant", "size"]]]))
    net.train()
    outputs = net(IMAGES[:64])
    losses = {task: LOSSES[task](outputs[task], LABELS[task][:64]) for task in TASKS}
    expected = {}
    for node in net.members():
        parameters = list(node.module.parameters())
        rows = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(losses[task], parameters, retain_graph=True)])
                for task in node.tasks
            ]
        )
        torch.manual_seed(0)  # PCGrad draws an order
        expected[node.id] = rows[0] if len(rows) == 1 else aggregator(rows)
    single = expected["nodes.2.0"]
    assert single.norm() > 1e-3
    backward_per_node(net, losses, aggregator)
    for node in net.members():
        found = torch.cat([parameter.grad.flatten() for parameter in node.module.parameters()])
        if kind != "PCGrad" or len(node.tasks) < 3:  # of two rows the order does not matter
            torch.testing.assert_close(found, expected[node.id], rtol=1e-3, atol=1e-5)
