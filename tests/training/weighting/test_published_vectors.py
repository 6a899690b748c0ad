"""What TorchJD prints of its aggregators on one matrix comes out at a node of two tasks.

The values stand in its documentation and in `tests/unit/aggregation/test_values.py` of its repository.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.training import weighting_of

ROWS = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
PRINTED = {
    "equal": [2.0, 2.0, 2.0],
    "upgrad": [0.2929, 1.9004, 1.9004],
    "mgda": [0.0, 1.0, 1.0],
    "pcgrad": [0.5848, 3.8012, 3.8012],
    "cagrad": [0.1835, 1.2041, 1.2041],
    "config": [0.1588, 2.0706, 2.0706],
    "imtl-g": [0.0767, 1.0, 1.0],
    "aligned-mtl": [0.2133, 0.9673, 0.9673],
    "nash-mtl": [0.0542, 0.7061, 0.7061],
}


def point(start: list[float]) -> BranchedNetwork:
    """Two tasks whose common node is a vector; their heads hand it on."""
    layers = nn.Linear(1, len(start), bias=False), nn.Linear(len(start), len(start), bias=False)
    networks: dict[str, Any] = {task: nn.Sequential(*layers) for task in "ab"}
    net = branchnet.build(
        Tree.shared(list("ab"), 1), networks, example=torch.ones(1, 1), locations=["0"], init="donor"
    ).train()
    net.freeze("heads.0", "heads.1")
    for head in net.heads:
        next(head.parameters()).data = torch.eye(len(start))
    next(net.nodes.parameters()).data = torch.tensor(start)[:, None]
    return net


def gradient(net: BranchedNetwork, weights: str, losses: dict[str, Tensor]) -> Tensor:
    try:
        weighting = weighting_of(weights, "ab", net)
    except branchnet.errors.TrainingError as error:  # CAGrad's solver is in no extra of the tests
        pytest.skip(str(error))
    weighting.backward(net, losses)
    found = next(net.nodes.parameters()).grad
    assert found is not None
    return found[:, 0]


@pytest.mark.parametrize("weights", PRINTED)
def test_a_node_gets_the_vector_that_torchjd_prints(weights: str) -> None:
    if weights not in ("equal", "nash-mtl"):
        pytest.importorskip("torchjd")
    net = point([0.0, 0.0, 0.0])
    outputs = net(torch.ones(1, 1))
    found = gradient(net, weights, {task: row @ outputs[task][0] for task, row in zip("ab", ROWS, strict=True)})
    torch.testing.assert_close(found, torch.tensor(PRINTED[weights]), rtol=0, atol=2e-4)


def test_its_example_of_two_functions_of_one_vector() -> None:
    pytest.importorskip("torchjd")
    net = point([1.0, 2.0])
    outputs = net(torch.ones(1, 1))
    losses = {"a": torch.tensor([-1.0, 1.0]) @ outputs["a"][0], "b": outputs["b"][0].square().sum()}
    torch.testing.assert_close(gradient(net, "upgrad", losses), torch.tensor([0.5, 2.5]), rtol=0, atol=1e-4)
