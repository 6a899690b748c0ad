"""Small branched networks, and the aggregation of gradients by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree

TASKS = ("a", "b", "c", "d")
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = dict(zip(TASKS, torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1)).double(), strict=True))
TREE = Tree(TASKS, [[TASKS], [("a", "b", "c"), ("d",)], [("a", "b"), ("c",), ("d",)]])
Gradients = dict[str, list[Tensor | None]]


def linear_networks() -> dict[str, branchnet.StagedNetwork]:
    """Four networks of four linear layers, in float64."""
    torch.manual_seed(2)
    made: dict[str, nn.Module] = {
        task: nn.Sequential(
            nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False), nn.Linear(3, 2)
        ).double()
        for task in TASKS
    }
    return branchnet.split_all(made, X, locations=["0", "1", "2"])


def linear_tree(tree: Tree = TREE) -> BranchedNetwork:
    return branchnet.build(tree, linear_networks(), init="donor").train()


def losses_of(network: BranchedNetwork, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    outputs = network(X, tasks)
    return {task: (outputs[task] - TARGETS[task]).square().mean() for task in tasks}


def gradients(network: BranchedNetwork) -> Gradients:
    return {node.id: [p.grad for p in node.module.parameters()] for node in network.members()}


def by_hand(
    network: BranchedNetwork, losses: Mapping[str, Tensor], aggregator: Callable[[int], Callable[[Tensor], Tensor]]
) -> Gradients:
    """For each node a loop over its own tasks that have a loss; the rows stacked, aggregated and cut up again."""
    found: Gradients = {}
    for node in network.members():
        parameters = [p for p in node.module.parameters() if p.requires_grad]
        own = [task for task in node.tasks if task in losses]
        if not own or not parameters:
            found[node.id] = [None for _ in node.module.parameters()]
            continue
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(losses[task], parameters, retain_graph=True)])
            for task in own
        ]
        vector = aggregator(len(rows))(torch.stack(rows)) if len(rows) > 1 else rows[0]
        pieces = vector.split([p.numel() for p in parameters])
        found[node.id] = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
    return found


def assert_equal(found: Gradients, expected: Gradients, tolerance: float = 1e-9) -> None:
    assert list(found) == list(expected)
    for node, wanted in expected.items():
        for got, want in zip(found[node], wanted, strict=True):
            assert (got is None) == (want is None), node
            if got is not None and want is not None:
                torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance, msg=lambda m, n=node: f"{n}: {m}")
