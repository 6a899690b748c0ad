"""What `weights=` may be, and what is said of anything else."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from branchnet.errors import TrainingError
from branchnet.training import Aggregate, nash_mtl, weighting_of
from branchnet.training.weighting.loss_weightings import UncertaintyWeighting
from branchnet.training.weighting.named_weightings import FROM_TORCHJD, NAMES, OF_LOSSES
from tests.training.weighting.networks import TASKS, gradients, linear_tree, losses_of


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_a_weighting_that_fills_all_gradients(name: str) -> None:
    if name not in OF_LOSSES and name != "nash-mtl":
        pytest.importorskip("torchjd")
    if name == "cagrad":
        pytest.importorskip("cvxpy")
    if name == "upgrad":
        pytest.importorskip("quadprog")
    net = linear_tree()
    weighting = weighting_of(name, TASKS, net)
    for tasks in (TASKS, TASKS[1:3], TASKS):
        net.zero_grad()
        weighting.backward(net, losses_of(net, tasks))
        weighting.after_step(lambda tasks=tasks: losses_of(net, tasks))
        served = {node.id for node in net.members() if set(node.tasks) & set(tasks)}
        assert {node for node, (first, *_) in gradients(net).items() if first is not None} == served
    assert set(weighting.weights()) == (set(TASKS) if name in (*OF_LOSSES, "imtl") else set())
    assert all(parameter.grad is not None for parameter in weighting.parameters())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("upgrade", "weights='upgrade' is not the name of a weighting; did you mean 'upgrad'"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "x": 1.0}, "weights names the unknown task 'x'"),
        ({"a": 1.0, "b": 1.0}, r"weights lacks \['c', 'd'\]; expected a number for each of"),
        (dict.fromkeys(TASKS, 1.0) | {"b": -0.5}, "the weight of 'b' is -0.5; expected a finite number of 0 or more"),
        (dict.fromkeys(TASKS, 1.0) | {"b": float("nan")}, "the weight of 'b' is nan"),
        (dict.fromkeys(TASKS, 1.0) | {"b": "1"}, "the weight of 'b' is '1'"),
        (dict.fromkeys(TASKS, 0.0), "expected one larger than 0"),
        (0.5, "weights=0.5; expected None, a number for each task, one of equal, "),
        (UncertaintyWeighting(["a"]), r"weights is made for \['a'\]; expected"),
    ],
)
def test_what_is_no_weighting_is_named(weights: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        weighting_of(weights, TASKS, linear_tree())


@pytest.mark.parametrize("weights", ["gradnorm", "nash-mtl", Aggregate(nash_mtl)])
def test_methods_that_need_a_tree_say_so(weights: Any) -> None:
    with pytest.raises(TrainingError, match="in a BranchedNetwork, not a Linear"):
        weighting_of(weights, ["loss"], nn.Linear(1, 1))


def test_given_weights_are_those_of_the_tasks() -> None:
    net = linear_tree()
    weights = dict(zip(reversed(TASKS), (1.0, 2, 0, 0.5), strict=True))
    weighting = weighting_of(weights, TASKS, net)
    assert weighting.weights() == {"a": 0.5, "b": 0.0, "c": 2.0, "d": 1.0}
    weighting.backward(net, losses_of(net))
    found = [p.grad for p in net.parameters()]
    net.zero_grad()
    sum(weights[task] * loss for task, loss in losses_of(net).items()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(found, [p.grad for p in net.parameters()])


@pytest.mark.parametrize("name", [*FROM_TORCHJD, "imtl"])
def test_without_torchjd_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(TrainingError, match=r"needs TorchJD .*: pip install 'branchnet\[mtl\]'"):
        weighting_of(name, TASKS, linear_tree())


def test_a_weighting_moves_to_the_networks_device() -> None:
    net = linear_tree().to("meta")
    assert {tensor.device.type for tensor in weighting_of("famo", TASKS, net).state_dict().values()} == {"meta"}
