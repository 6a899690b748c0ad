"""Distillation: it approaches the donors, leaves them alone, and weighs nodes and tasks as it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import CheckpointError, TrainingError
from branchnet.training import Teachers, evaluate, explained_variance, reestimate_batchnorm
from branchnet.training.batchnorm import foreign_modules
from branchnet.training.optimization.groups import node_groups

LOCATIONS = ["0", "1", "4"]
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
TASKS = ("a", "b", "c")


def network(seed: int, outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Linear(6, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 12),
            nn.BatchNorm1d(12),
            nn.Linear(12, outputs),
        )
        made.train()(X * (1 + seed))
    return made.eval()


DONORS = {task: network(i) for i, task in enumerate(TASKS)}


def branched(tree: Tree) -> BranchedNetwork:
    return branchnet.build(tree, branchnet.split_all(DONORS, X[:2], locations=LOCATIONS), init="donor")


SHARED = Tree.shared(TASKS, 3)
MIXED = Tree(TASKS, [[TASKS], [("a",), ("b", "c")], [("a",), ("b",), ("c",)]])


def agreement(net: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        targets = {task: donor(X) for task, donor in DONORS.items()}
    return evaluate(net, X, targets, dict.fromkeys(TASKS, explained_variance()))


def test_distillation_approaches_the_donors_and_leaves_them_alone() -> None:
    before = {task: {k: v.clone() for k, v in donor.state_dict().items()} for task, donor in DONORS.items()}
    net = branched(SHARED)
    start = agreement(net)
    history = branchnet.distill(net, DONORS, X, steps=300, batch_size=32, learning_rate=1e-2, progress=False)
    end = agreement(net)
    assert all(end[task] > 60 > start[task] for task in ("b", "c"))
    assert all(len(losses) == 300 for losses in history.losses.values())
    assert not net.training and not any(donor.training for donor in DONORS.values())
    for task, donor in DONORS.items():
        assert all(torch.equal(v, before[task][k]) for k, v in donor.state_dict().items())


def test_a_separate_tree_starts_with_no_loss() -> None:
    net = branched(Tree.separate(TASKS, 3))
    assert all(value == pytest.approx(100) for value in agreement(net).values())


def test_the_first_loss_is_the_error_over_the_donors_variance() -> None:
    net, donors = branched(SHARED), DONORS
    reestimate_batchnorm(net, X)
    reference = {task: donor(X).detach() for task, donor in donors.items()}
    net.train()
    with torch.no_grad():
        outputs = net(X)
    expected = {
        task: float((outputs[task] - reference[task]).square().mean() / reference[task].var(0, correction=0).mean())
        for task in TASKS
    }
    history = branchnet.distill(
        branched(SHARED), donors, X, steps=1, batch_size=96, learning_rate=1e-9, keep="last", progress=False
    )
    assert {task: losses[0] for task, losses in history.losses.items()} == pytest.approx(expected, rel=1e-4)


def test_a_nodes_learning_rate_is_divided_by_the_tasks_that_it_serves() -> None:
    net = branched(MIXED)
    rates = {}
    names = {id(p): name for name, p in net.named_parameters()}
    for group in node_groups(net, 0.6, divided=True):
        for parameter in group.parameters:
            rates[names[id(parameter)]] = group.learning_rate
    assert len(rates) == len(names)
    assert {group.learning_rate for group in node_groups(net, 0.6)} == {0.6}
    expected = {"nodes.0.0": 0.2, "nodes.1.0": 0.6, "nodes.1.1": 0.3, "nodes.2.2": 0.6, "heads.0": 0.6}
    for node, rate in expected.items():
        found = {value for name, value in rates.items() if name.startswith(node + ".")}
        assert all(value == pytest.approx(rate) for value in found)
        assert found or node.startswith("nodes.1")


def test_only_nodes_with_foreign_features_get_new_statistics() -> None:
    net = branched(MIXED)
    assert net.donors == (("a",), ("a", "b"), ("a", "b", "c"))
    foreign = foreign_modules(net)
    ids = {node.id for node in net.members() if any(node.module is module for module in foreign)}
    assert ids == {"nodes.1.1", "nodes.2.1", "nodes.2.2", "heads.1", "heads.2"}


def test_statistics_are_the_mean_and_variance_of_the_features_that_arrive() -> None:
    net = branched(MIXED)
    own = net.nodes[1][0].state_dict()["1.running_mean"].clone()  # type: ignore[index, union-attr]
    count = reestimate_batchnorm(net, X, batch_size=96)
    assert count == 3
    arriving = DONORS["a"][0](X)  # type: ignore[index]
    norm = net.nodes[1][1].get_submodule("1")  # type: ignore[index, union-attr]
    torch.testing.assert_close(norm.running_mean, arriving.mean(0))
    torch.testing.assert_close(norm.running_var, arriving.var(0, correction=1))
    assert norm.momentum == 0.1 and not norm.training
    assert torch.equal(net.nodes[1][0].state_dict()["1.running_mean"], own)  # type: ignore[index, union-attr]


def test_statistics_are_estimated_before_the_first_step() -> None:
    """One step at rate 0 moves them a tenth of the way towards its batch, which here is where they are already."""
    net, images = branched(MIXED), X[:64]
    branchnet.distill(net, DONORS, images, steps=1, batch_size=64, learning_rate=0.0, keep="last", progress=False)
    arriving = DONORS["a"][0](images)  # type: ignore[index]
    norm = net.nodes[1][1].get_submodule("1")  # type: ignore[index, union-attr]
    torch.testing.assert_close(norm.running_mean, arriving.mean(0))
    torch.testing.assert_close(norm.running_var, arriving.var(0, correction=1))


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.inner(x)
        return {"logits": y, "pair": (y[:, :1] * 2, y.argmax(1))}


@pytest.mark.parametrize("recorded_bytes", [0, 2**30])
def test_teachers_give_nested_outputs_recorded_or_not(recorded_bytes: int) -> None:
    donors = {task: Nested(donor).eval() for task, donor in DONORS.items()}
    teachers = Teachers(donors, X, recorded_bytes=recorded_bytes, progress=False)
    index = torch.tensor([5, 1, 70])
    with torch.no_grad():
        expected = donors["b"](X[index])
    found = teachers.outputs(index, ["b"], torch.device("cpu"))["b"]
    torch.testing.assert_close(found, expected)
    variance = DONORS["b"](X).detach().var(0, correction=0)
    assert teachers.variances("b") == pytest.approx((float(variance.mean()), float(4 * variance[0])), rel=1e-4)


@pytest.mark.parametrize("short", [0, 1])
def test_outputs_are_recorded_where_all_of_them_fit_and_computed_again_otherwise(short: int) -> None:
    everything = 96 * (3 + 3 + 3) * 4
    runs: list[int] = []
    donors = {task: network(i) for i, task in enumerate(TASKS)}
    for donor in donors.values():
        donor.register_forward_hook(lambda _module, _inputs, output: runs.append(len(output)))
    teachers = Teachers(donors, X, recorded_bytes=everything - short, progress=False)
    runs.clear()
    for _ in range(2):
        teachers.outputs(torch.arange(10), ["a", "c"], torch.device("cpu"))
    assert runs == [10] * 4 * short


def test_small_outputs_are_recorded_without_being_asked_for() -> None:
    runs: list[int] = []
    donor = network(1)
    donor.register_forward_hook(lambda _module, _inputs, output: runs.append(len(output)))
    teachers = Teachers({"a": donor}, X, progress=False)
    runs.clear()
    torch.testing.assert_close(teachers.outputs(torch.arange(96), ["a"], torch.device("cpu"))["a"], DONORS["b"](X))
    assert runs == []


def test_a_constant_donor_is_refused_by_name() -> None:
    constant = nn.Linear(6, 2)
    nn.init.zeros_(constant.weight)
    with pytest.raises(TrainingError, match="'flat' has variance"):
        Teachers({"flat": constant}, X, progress=False)


def test_teachers_of_other_images_are_refused() -> None:
    with pytest.raises(TrainingError, match="of other images"):
        branchnet.distill(branched(SHARED), Teachers(DONORS, X.flip(0), progress=False), X, steps=1, progress=False)


def test_frozen_donors_give_a_network_that_can_be_trained() -> None:
    frozen = {task: network(i).requires_grad_(False) for i, task in enumerate(TASKS)}
    net = branchnet.build(SHARED, branchnet.split_all(frozen, X[:2], locations=LOCATIONS), init="donor")
    before = {name: value.clone() for name, value in net.named_parameters()}
    branchnet.distill(net, frozen, X, steps=3, batch_size=32, learning_rate=1e-3, keep="last", progress=False)
    assert all(not torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert not any(parameter.requires_grad for donor in frozen.values() for parameter in donor.parameters())


def test_a_checkpoint_of_other_donors_or_images_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    branchnet.distill(branched(SHARED), DONORS, X, steps=2, progress=False, checkpoint=file)
    other = branched(SHARED)
    other.heads[0].get_parameter("5.bias").data.add_(1)
    with pytest.raises(CheckpointError, match="other weights;"):
        branchnet.distill(other, DONORS, X, steps=2, progress=False, checkpoint=file)
    with pytest.raises(CheckpointError, match="other samples;"):
        branchnet.distill(branched(SHARED), DONORS, X.flip(0), steps=2, progress=False, checkpoint=file)
    teachers = DONORS | {"b": network(9)}
    with pytest.raises(CheckpointError, match="other teachers;"):
        branchnet.distill(branched(SHARED), teachers, X, steps=2, progress=False, checkpoint=file)
    resumed = branchnet.distill(branched(SHARED), DONORS, X, steps=2, progress=False, checkpoint=file)
    assert resumed.resumed_at == 2


def test_a_task_without_a_network_and_an_eval_only_network_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"tasks \['c'\] have no single-task network"):
        branchnet.distill(branched(SHARED), {t: DONORS[t] for t in "ab"}, X, steps=1, progress=False)
    net = branched(SHARED)
    net.eval_only = "traced without dropout"
    with pytest.raises(TrainingError, match="traced without dropout"):
        branchnet.distill(net, DONORS, X, steps=1, progress=False)


def test_fit_learns_labels_of_a_branched_and_of_a_single_network() -> None:
    labels = {task: X[:, i : i + 3] for i, task in enumerate(TASKS)}
    mse = nn.functional.mse_loss
    net = branched(MIXED)
    history = branchnet.fit(
        net, (X, labels), dict.fromkeys(TASKS, mse), steps=200, batch_size=32, learning_rate=1e-2, progress=False
    )
    for losses in history.losses.values():
        assert math.fsum(losses[-10:]) < 0.3 * math.fsum(losses[:10])
    single = network(5)
    history = branchnet.fit(single, (X, labels["a"]), mse, steps=200, batch_size=32, learning_rate=1e-2, progress=False)
    assert math.fsum(history.losses["loss"][-10:]) < 0.3 * math.fsum(history.losses["loss"][:10])


def test_fit_refuses_what_does_not_fit_together() -> None:
    mse = nn.functional.mse_loss
    with pytest.raises(TrainingError, match="95 labels were given; expected 96"):
        branchnet.fit(network(0), (X, X[1:, :3]), mse, steps=1, progress=False)
    with pytest.raises(TrainingError, match="by task"):
        branchnet.fit(branched(MIXED), (X, X[:, :3]), mse, steps=1, progress=False)
    with pytest.raises(TrainingError, match="'c' lacks labels"):
        branchnet.fit(
            branched(MIXED), (X, dict.fromkeys("ab", X[:, :3])), dict.fromkeys(TASKS, mse), steps=1, progress=False
        )


def test_arrays_are_taken_as_tensors_are() -> None:
    staged = branchnet.split_all(DONORS, X[:2], locations=LOCATIONS)
    trained = []
    for images in (X, X.numpy()):
        branched = branchnet.build(Tree.shared(TASKS, 3), staged, init="donor")
        branchnet.distill(branched, DONORS, images, steps=2, batch_size=16, progress=False)
        trained.append(branched.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_distillation_under_autocast_is_like_distillation_in_float32() -> None:
    """Estimating BatchNorm before casts the weights without a graph; the casts must not be used in training."""
    ends = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            history = branchnet.distill(
                branched(SHARED), DONORS, X, steps=60, batch_size=32, learning_rate=1e-2, progress=False
            )
        ends.append(math.fsum(math.fsum(losses[-10:]) for losses in history.losses.values()))
    assert ends[1] == pytest.approx(ends[0], rel=0.15)


def test_arguments_in_another_order_are_named() -> None:
    net = branched(SHARED)
    with pytest.raises(TrainingError, match=r"the network to train is a dict; expected distill\(branched, networks"):
        branchnet.distill(DONORS, net, X)
    with pytest.raises(TrainingError, match="networks is a Tensor; expected a mapping of task names"):
        branchnet.distill(net, X, DONORS)
    with pytest.raises(TrainingError, match=r"tasks \['c'\] have no single-task network"):
        branchnet.distill(net, {task: DONORS[task] for task in "ab"}, X, progress=False)


def test_teachers_of_another_output_are_refused_where_they_would_broadcast() -> None:
    swapped = {"a": network(4, outputs=1), "b": DONORS["b"], "c": DONORS["c"]}
    with pytest.raises(
        TrainingError, match=r"task 'a': in training mode the network to train returns \(2, 3\) and .* \(2, 1\)"
    ):
        branchnet.distill(branched(SHARED), swapped, X, batch_size=8, steps=1, progress=False)


def test_samples_that_cannot_be_run_are_described() -> None:
    with pytest.raises(TrainingError, match=r"inputs of shape \(64, 5\) float32; expected \(2, 6\) float32"):
        branchnet.distill(branched(SHARED), DONORS, X[:, :5], steps=1, progress=False)
    with pytest.raises(TrainingError, match=r"network of 'a' cannot be run on inputs of shape \(64, 5\) float32: "):
        Teachers(DONORS, X[:, :5], progress=False)
    damaged = X.clone()
    damaged[70, 1] = math.inf
    with pytest.raises(TrainingError, match="sample 70 holds NaN or infinite values, so that the output of 'a'"):
        Teachers(DONORS, damaged, progress=False)


@pytest.mark.parametrize("steps", [2.0, "10"])
def test_steps_are_a_whole_number(steps: object) -> None:
    with pytest.raises(TrainingError, match=f"steps={steps!r}; expected a whole number of 1 or more"):
        branchnet.distill(branched(SHARED), DONORS, X, steps=steps, progress=False)
