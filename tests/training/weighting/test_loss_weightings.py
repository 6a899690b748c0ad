"""Weights of losses, against TorchJD's scalarizers where it has them, and against the papers' equations by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from branchnet import Tree
from branchnet.errors import TrainingError
from branchnet.training import Weighting, backward_per_node, weighting_of
from branchnet.training.weighting.famo import FamoWeighting
from branchnet.training.weighting.gradnorm import GradNormWeighting, common_nodes
from branchnet.training.weighting.loss_weightings import DynamicWeightAverage
from branchnet.training.weighting.named_weightings import NAMES
from tests.training.weighting.networks import TASKS, X, assert_equal, gradients, linear_tree, losses_of

THREE = TASKS[:3]
BATCHES = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) + 0.1


def leaves(values: Tensor) -> dict[str, Tensor]:
    return {task: value.clone().requires_grad_() for task, value in zip(THREE, values, strict=False)}


def slopes(weighting: Weighting, values: Tensor) -> list[float]:
    """What each loss is multiplied by in one step."""
    losses = leaves(values)
    weighting.backward(nn.Linear(1, 1), losses)
    return [float(loss.grad) for loss in losses.values()]  # type: ignore[arg-type]


def named(name: str) -> Any:
    return weighting_of(name, THREE, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("name", "kind", "own", "theirs"),
    [("uncertainty", "UW", "log_variances", "log_var"), ("imtl-l", "IMTLL", "log_scales", "log_scale")],
)
def test_trained_scales_are_those_of_torchjd(name: str, kind: str, own: str, theirs: str) -> None:
    scalarizer = getattr(pytest.importorskip("torchjd.scalarization"), kind)(3)
    weighting = named(name)
    ours, others = (torch.optim.SGD(module.parameters(), 0.3) for module in (weighting, scalarizer))
    for values in BATCHES:
        wanted = values.clone().requires_grad_()
        ours.zero_grad()
        others.zero_grad()
        scalarizer(wanted).backward()
        found = slopes(weighting, values)
        assert found == pytest.approx(wanted.grad.tolist())  # type: ignore[union-attr]
        assert list(weighting.weights().values()) == pytest.approx(found)
        ours.step()
        others.step()
    torch.testing.assert_close(getattr(weighting, own), getattr(scalarizer, theirs))


def test_the_trained_variances_are_the_losses_themselves_in_the_end() -> None:
    weighting = named("uncertainty")  # exp(-s) L + s is smallest at exp(s) = L
    optimizer = torch.optim.Adam(weighting.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        slopes(weighting, torch.tensor([4.0, 0.25, 1.0]))
        optimizer.step()
    assert weighting.log_variances.exp().tolist() == pytest.approx([4.0, 0.25, 1.0], rel=1e-3)


def test_dynamic_weight_averages_are_those_of_torchjd() -> None:
    scalarizer = pytest.importorskip("torchjd.scalarization").DWA()
    weighting = DynamicWeightAverage(THREE, every=3)
    for step, values in enumerate(BATCHES, start=1):
        wanted = values.clone().requires_grad_()
        scalarizer(wanted).backward()
        assert slopes(weighting, values) == pytest.approx(wanted.grad.tolist())  # type: ignore[union-attr]
        if step % 3 == 0:
            scalarizer.step()


def test_a_window_without_a_tasks_labels_leaves_its_rate_as_it_was() -> None:
    weighting = DynamicWeightAverage(THREE, every=1)
    for values in ([1.0, 4.0, 2.0], [1.0, 2.0, 2.0], [2.0, 1.0]):
        slopes(weighting, torch.tensor(values))
    rates = [math.exp(rate / 2) for rate in (2.0, 0.5, 1.0)]
    expected = [3 * rate / sum(rates) for rate in rates]
    assert list(weighting.weights().values()) == pytest.approx(expected)
    assert slopes(weighting, torch.ones(3)) == pytest.approx(expected)


def test_random_weights_are_positive_sum_to_one_and_follow_the_seed() -> None:
    torch.manual_seed(5)
    weighting = named("rlw")
    first, second = slopes(weighting, BATCHES[0]), slopes(weighting, BATCHES[0, :2])
    weighting.begin_step(0)  # as in a process that had no labels in the step before
    assert slopes(weighting, BATCHES[0]) == first != second
    torch.manual_seed(5)
    assert slopes(named("rlw"), BATCHES[0]) == first
    assert slopes(named("rlw"), BATCHES[0]) != first
    assert sum(first) == pytest.approx(1)
    weighting.begin_step(1)
    assert slopes(weighting, BATCHES[0])[:2] == second  # whatever tasks have labels
    assert min(first) > 0
    drawn = torch.tensor([slopes(weighting, BATCHES[0]) for _ in range(2000)])
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_famo_is_that_of_torchjd() -> None:
    scalarizer = pytest.importorskip("torchjd.scalarization").FAMO(3)
    weighting = named("famo")
    for values, after in zip(BATCHES, BATCHES.roll(1, 0), strict=True):
        wanted = values.clone().requires_grad_()
        scalarizer(wanted).backward()
        assert slopes(weighting, values) == pytest.approx(wanted.grad.tolist(), rel=1e-5)  # type: ignore[union-attr]
        scalarizer.update(after)
        weighting.after_step(lambda now=after: leaves(now))
    torch.testing.assert_close(weighting.logits, scalarizer._w.detach())
    assert sum(slopes(weighting, BATCHES[0])) == pytest.approx(1)


def test_famo_with_some_tasks_changes_their_weights_alone() -> None:
    weighting = named("famo")
    slopes(weighting, torch.tensor([1.0, 2.0]))
    weighting.after_step(lambda: leaves(torch.tensor([0.5, 2.0, 9.0])))
    a, b, c = weighting.logits.tolist()
    assert (a, b, c) == pytest.approx((-0.025, 0.025, 0), abs=1e-6)  # the first step of Adam is its rate


def test_famo_names_losses_that_it_cannot_take() -> None:
    weighting = FamoWeighting(THREE)
    with pytest.raises(TrainingError, match=r"the loss of 'b' is -0\.5; famo takes logarithms"):
        slopes(weighting, torch.tensor([1.0, -0.5, 1.0]))
    slopes(weighting, torch.ones(3))
    with pytest.raises(TrainingError, match=r"the losses after the step lack \['b', 'c'\]"):
        weighting.after_step(lambda: leaves(torch.ones(1)))


def test_gradnorm_takes_the_step_of_its_equations() -> None:
    net = linear_tree(Tree(TASKS, [[TASKS], [TASKS], [("a", "b"), ("c", "d")]]))
    weighting: Any = weighting_of("gradnorm", TASKS, net)
    assert [node.id for node in common_nodes(net)] == ["nodes.1.0"]
    weighting.backward(net, losses_of(net))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    first, now = weighting.first_losses.double(), torch.stack(list(losses_of(net).values())).detach()
    weights = weighting.weight.double().requires_grad_()
    (common,) = net.member("nodes.1.0").module.parameters()
    norms = torch.stack(
        [torch.autograd.grad(loss, common, retain_graph=True)[0].norm() for loss in losses_of(net).values()]
    )
    ratios = now / first
    target = (weights * norms).mean().detach() * (ratios / ratios.mean()) ** 1.5
    (gradient,) = torch.autograd.grad((weights * norms - target).abs().sum(), weights)
    moments = copy.deepcopy(weighting.adam)
    expected = weighting.weight.clone()
    moments.update(expected, gradient.float(), torch.ones(4, dtype=torch.bool))
    net.zero_grad()
    before = weighting.weight.clone()
    weighting.backward(net, losses_of(net))
    torch.testing.assert_close(weighting.weight, expected * 4 / expected.sum())
    plain = gradients(net)
    net.zero_grad()
    torch.stack([w * loss for w, loss in zip(before.double(), losses_of(net).values(), strict=True)]).sum().backward()
    assert_equal(plain, gradients(net), tolerance=1e-6)


def test_gradnorm_brings_the_norms_of_a_node_together() -> None:
    net = linear_tree(Tree(TASKS, [[("a", "b"), ("c", "d")], [("a", "b"), ("c", "d")], [(t,) for t in TASKS]]))
    weighting = GradNormWeighting(TASKS, alpha=0.0, rate=0.1)

    def scaled() -> dict[str, Tensor]:
        return {task: loss * {"a": 10.0, "b": 0.1}.get(task, 1.0) for task, loss in losses_of(net).items()}

    for _ in range(60):  # the network stays as it is
        weighting.backward(net, scaled())
    (common,) = net.member("nodes.1.0").module.parameters()
    a, b = (float(torch.autograd.grad(scaled()[task], common)[0].norm()) for task in "ab")
    found = weighting.weights()
    assert (found["a"] + found["b"], found["c"] + found["d"]) == pytest.approx((2, 2))
    assert found["a"] * a == pytest.approx(found["b"] * b, rel=0.3)


def test_gradnorm_leaves_single_tasks_alone_and_skips_frozen_nodes() -> None:
    net = linear_tree(Tree(TASKS, [[("a", "b", "c"), ("d",)], [("a", "b", "c"), ("d",)], [("a", "b"), ("c",), ("d",)]]))
    net.freeze("nodes.1.0")
    assert [node.id for node in common_nodes(net)] == ["nodes.0.0"]
    net.freeze("nodes.0.0")
    assert [node.id for node in common_nodes(net)] == ["nodes.2.0"]
    net.freeze("nodes.2.0")
    with pytest.raises(TrainingError, match="gradnorm compares the gradients of tasks at a node that they share"):
        weighting_of("gradnorm", TASKS, net)
    net.unfreeze("nodes.2.0")
    weighting = weighting_of("gradnorm", TASKS, net)
    for tasks in (TASKS, ("a", "d"), TASKS):
        weighting.backward(net, losses_of(net, tasks))
    found = weighting.weights()
    assert found["c"] == found["d"] == 1 and found["a"] + found["b"] == pytest.approx(2)


def test_impartial_weighting_scales_the_losses_and_aggregates_the_scaled_gradients() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    net = linear_tree()
    weighting: Any = weighting_of("imtl", TASKS, net)
    with torch.no_grad():
        weighting.scales.log_scales.copy_(torch.tensor([0.5, -0.5, 1.0, 0.0]))
    weighting.backward(net, losses_of(net))
    found = gradients(net)
    slope = weighting.scales.log_scales.grad
    net.zero_grad()
    scales = torch.tensor([0.5, -0.5, 1.0, 0.0]).exp()
    scaled = {task: scale * loss for scale, (task, loss) in zip(scales.double(), losses_of(net).items(), strict=True)}
    values = torch.stack(list(scaled.values())).detach()
    backward_per_node(net, scaled, aggregation.IMTLG())
    assert_equal(found, gradients(net), tolerance=1e-5)
    torch.testing.assert_close(slope.double(), values - 1)
    assert list(weighting.weights().values()) == pytest.approx(scales.tolist())


STATEFUL = tuple(name for name in NAMES if name in ("equal", "uncertainty", "dwa", "imtl-l", "famo", "gradnorm"))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_weighting_goes_on_from_its_saved_state(name: str) -> None:
    net = linear_tree()

    def step(weighting: Any, shift: float) -> None:
        def losses() -> dict[str, Tensor]:
            return {task: loss * (1 + shift * i) for i, (task, loss) in enumerate(losses_of(net).items())}

        weighting.backward(net, losses())
        weighting.after_step(lambda: {task: 0.9 * loss for task, loss in losses().items()})
        with torch.no_grad():
            for parameter in weighting.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    def make() -> Any:
        return DynamicWeightAverage(TASKS, every=2) if name == "dwa" else weighting_of(name, TASKS, net)

    whole, parts = make(), [make(), make()]
    for number in range(7):
        if number == 4:
            parts[1].load_state_dict(parts[0].state_dict())
        step(whole, number / 10)
        step(parts[number >= 4], number / 10)
    assert whole.weights() == parts[1].weights()
    assert name == "equal" or len(set(whole.weights().values())) > 1


@pytest.mark.parametrize("name", STATEFUL)
def test_losses_of_unknown_tasks_and_none_are_refused(name: str) -> None:
    net = linear_tree()
    weighting = weighting_of(name, TASKS, net)
    losses: list[tuple[Callable[[], dict[str, Tensor]], str]] = [
        (dict, "losses is empty"),
        (lambda: {"e": losses_of(net)["a"]}, "unknown task 'e'"),
    ]
    for made, message in losses:
        with pytest.raises(TrainingError, match=message):
            weighting.backward(net, made())


def test_equal_weighting_is_the_sum_to_the_last_bit() -> None:
    net = linear_tree()
    torch.stack(list(losses_of(net).values())).sum().backward()
    plain = gradients(net)
    net.zero_grad()
    weighting_of(None, TASKS, net).backward(net, losses_of(net))
    assert_equal(gradients(net), plain, tolerance=0)
    assert X.grad is None
