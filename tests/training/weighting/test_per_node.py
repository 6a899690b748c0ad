"""The gradient of every node, against gradients derived or aggregated by hand on that node's own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.errors import TrainingError
from branchnet.training import Aggregate, backward_per_node, nash_mtl
from tests.training.weighting.networks import (
    TARGETS,
    TASKS,
    TREE,
    X,
    assert_equal,
    by_hand,
    gradients,
    linear_networks,
    linear_tree,
    losses_of,
)

KINDS = ("MGDA", "PCGrad", "GradDrop", "AlignedMTL", "ConFIG", "UPGrad", "IMTLG", "CAGrad", "NashMTL", "nash_mtl")


def maker(kind: str) -> Callable[[int], Callable[[Tensor], Tensor]]:
    """From a number of rows to TorchJD's aggregator of that name, or ours."""
    if kind == "nash_mtl":
        return lambda _: nash_mtl
    module = pytest.importorskip("torchjd.aggregation")
    if kind in ("CAGrad", "NashMTL"):
        pytest.importorskip("cvxpy")
    if kind == "NashMTL":
        pytest.importorskip("ecos")
    arguments = {"CAGrad": {"c": 0.5}}.get(kind, {})
    return lambda rows: getattr(module, kind)(**arguments, **({"n_tasks": rows} if kind == "NashMTL" else {}))


def mean(matrix: Tensor) -> Tensor:
    return matrix.mean(0)


def test_gradients_of_a_linear_tree_are_those_derived_by_hand() -> None:
    net = linear_tree()
    backward_per_node(net, losses_of(net), lambda rows: 3 * rows[0] - 2 * rows[-1])
    inner = {node.id: node.module.get_parameter("0.weight" if not node.stage else f"{node.stage}.weight").detach()
             for node in net.members() if not node.is_head}  # fmt: skip
    heads = dict(zip(TASKS, net.heads, strict=True))
    paths = {
        task: ["nodes.0.0", f"nodes.1.{int(task == 'd')}", f"nodes.2.{max(0, 'bcd'.find(task))}"] for task in TASKS
    }
    of: dict[str, dict[str, Tensor]] = {}  # of[task][node], by the chain rule
    for task in TASKS:
        weights = [inner[node] for node in paths[task]] + [heads[task].get_parameter("3.weight").detach()]
        seen = [X]
        for weight in weights:
            seen.append(seen[-1] @ weight.T)
        error = 2 * (seen[-1] + heads[task].get_parameter("3.bias").detach() - TARGETS[task]) / TARGETS[task].numel()
        of[task] = {}
        for node, weight, before in zip([*paths[task], "head"][::-1], weights[::-1], seen[-2::-1], strict=True):
            of[task][node] = error.T @ before
            error = error @ weight
    for node in net.members():
        name = "head" if node.is_head else node.id
        first, last = of[node.tasks[0]][name], of[node.tasks[-1]][name]
        expected = 3 * first - 2 * last if len(node.tasks) > 1 else first
        torch.testing.assert_close(next(node.module.parameters()).grad, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_sees_the_rows_of_each_nodes_own_tasks(kind: str) -> None:
    net, make = linear_tree(), maker(kind)
    torch.manual_seed(3)
    expected = by_hand(net, losses_of(net), make)
    torch.manual_seed(3)
    backward_per_node(net, losses_of(net), make if kind == "NashMTL" else make(0))
    assert_equal(gradients(net), expected)


@pytest.mark.parametrize("kind", ["MGDA", "GradDrop", "UPGrad", "nash_mtl"])
def test_every_method_on_a_convolutional_tree_in_float32(kind: str) -> None:
    make, images = maker(kind), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(5)
    networks: dict[str, nn.Module] = {
        task: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(),
            nn.Conv2d(4, 2, 3, groups=2),
        )
        for task in TASKS[:3]
    }  # fmt: skip
    tree = Tree(TASKS[:3], [[("a", "b", "c")], [("a", "c"), ("b",)]])
    net = branchnet.build(tree, networks, example=images, locations=["2", "5"], init="donor").train()

    def losses() -> dict[str, Tensor]:
        return {task: output.square().mean() + output.mean() for task, output in net(images).items()}

    torch.manual_seed(6)
    expected = by_hand(net, losses(), make)
    torch.manual_seed(6)
    backward_per_node(net, losses(), make(0))
    assert_equal(gradients(net), expected, tolerance=1e-5)


@pytest.mark.parametrize("kind", ["MGDA", "CAGrad"])
def test_branches_of_one_task_get_their_plain_gradient_where_all_rows_would_give_none(kind: str) -> None:
    net, make = linear_tree(), maker(kind)
    losses = losses_of(net)
    parameters = list(net.nodes[1][1].parameters())  # type: ignore[index]
    rows = torch.stack([
        torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), parameters, strict=True)])
        for loss in losses.values()
    ])  # fmt: skip
    assert make(4)(rows).norm() < 1e-6
    (plain,) = torch.autograd.grad(losses["d"], parameters, retain_graph=True)
    backward_per_node(net, losses, make(0))
    torch.testing.assert_close(parameters[0].grad, plain)
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


STAGED = linear_networks()
TREES = list(branchnet.enumerate_trees(TASKS[:3], 3))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TREES), st.sets(st.sampled_from(TASKS[:3]), min_size=1))
def test_the_mean_is_the_plain_gradient_of_each_nodes_mean_loss(tree: Tree, given_tasks: set[str]) -> None:
    net = branchnet.build(tree, {task: STAGED[task] for task in tree.tasks}, init="donor").train()
    tasks = sorted(given_tasks)
    torch.stack(list(losses_of(net, tasks).values())).sum().backward()
    plain = gradients(net)
    for node in net.members():
        count = sum(task in tasks for task in node.tasks)
        plain[node.id] = [None if g is None else g / count for g in plain[node.id]]
    net.zero_grad()
    backward_per_node(net, losses_of(net, tasks), mean)
    assert_equal(gradients(net), plain)


def test_gradients_add_up_as_those_of_backward_do() -> None:
    net = linear_tree()
    backward_per_node(net, losses_of(net), mean)
    once = gradients(net)
    once = {node: [None if g is None else g.clone() for g in grads] for node, grads in once.items()}
    backward_per_node(net, losses_of(net), mean)
    assert_equal(gradients(net), {node: [None if g is None else 2 * g for g in grads] for node, grads in once.items()})


def test_tasks_without_a_loss_are_left_out_and_frozen_nodes_get_nothing() -> None:
    net = linear_tree()
    net.freeze("nodes.0.0", "heads.1")
    expected = by_hand(net, losses_of(net, ("a", "b")), lambda _: mean)
    backward_per_node(net, losses_of(net, ("a", "b")), mean)
    assert_equal(gradients(net), expected)
    assert {node for node, (first, *_) in gradients(net).items() if first is not None} == {
        "nodes.1.0", "nodes.2.0", "heads.0",
    }  # fmt: skip


def test_a_task_that_is_frozen_throughout_takes_no_part() -> None:
    net = linear_tree()
    net.freeze("d")
    expected = by_hand(net, losses_of(net, ("a", "b", "c")), lambda _: mean)
    backward_per_node(net, losses_of(net), mean)
    assert_equal(gradients(net), expected)


def test_stitching_layers_belong_to_the_tasks_that_pass_them() -> None:
    torch.manual_seed(7)
    networks: dict[str, nn.Module] = {
        task: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)) for task in TASKS
    }
    probe = torch.randn(64, 3)
    tree = Tree(TASKS, [[TASKS], [("a", "b"), ("c", "d")]])
    net = branchnet.build(
        tree, branchnet.split_all(networks, probe[:2], locations=["1", "3"]), init="stitch", probe=probe
    ).train()
    assert any(child == "nodes.1.1" for _, child in net.stitches) and any("heads" in child for _, child in net.stitches)
    make = maker("UPGrad")

    def losses() -> dict[str, Tensor]:
        return {task: output.square().mean() for task, output in net(probe).items()}

    expected = by_hand(net, losses(), make)
    backward_per_node(net, losses(), make(0))
    assert_equal(gradients(net), expected, tolerance=1e-5)
    for (_, child), stitch in net.stitches.items():
        assert all(p.grad is not None for p in stitch.parameters()), child


def test_a_parameter_of_several_nodes_is_aggregated_once_over_the_tasks_of_all() -> None:
    net = linear_tree(Tree(TASKS, [[("a", "b"), ("c", "d")], [("a", "b"), ("c", "d")], [(t,) for t in TASKS]]))
    tied = next(net.nodes[0][0].parameters())  # type: ignore[index]
    net.nodes[0][1].get_submodule("0").weight = tied  # type: ignore[index]
    losses = losses_of(net)
    rows = torch.stack([torch.autograd.grad(loss, tied, retain_graph=True)[0].flatten() for loss in losses.values()])
    backward_per_node(net, losses, lambda matrix: matrix[0] - 2 * matrix[-1])
    torch.testing.assert_close(tied.grad, (rows[0] - 2 * rows[-1]).view_as(tied))


def test_parameters_of_losses_get_the_plain_gradient_of_the_sum() -> None:
    net = linear_tree()
    spread = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    losses = {task: loss * spread if task in "ab" else loss for task, loss in losses_of(net).items()}
    plain = sum(losses_of(net)[task].item() for task in "ab")
    backward_per_node(net, losses, mean)
    assert float(spread.grad) == pytest.approx(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1024.0, 1 / 3])
def test_what_stands_for_backward_scales_the_result_not_what_is_aggregated(factor: float) -> None:
    net, seen = linear_tree(), []

    def of_unit_length(matrix: Tensor) -> Tensor:
        seen.append(matrix.norm())
        return matrix.sum(0) / matrix.sum(0).norm()

    backward_per_node(net, losses_of(net), of_unit_length)
    plain = gradients(net)
    net.zero_grad()
    backward_per_node(net, losses_of(net), of_unit_length, backward=lambda loss: (factor * loss).backward())
    assert_equal(gradients(net), {node: [g if g is None else factor * g for g in all_] for node, all_ in plain.items()})
    torch.testing.assert_close(seen[: len(seen) // 2], seen[len(seen) // 2 :])


def test_gradients_that_overflow_are_not_aggregated_but_reach_the_scaler() -> None:
    net = linear_tree()
    losses = losses_of(net)
    losses["a"] = losses["a"] * torch.inf

    def refuse(matrix: Tensor) -> Tensor:
        assert matrix.isfinite().all()
        return mean(matrix)

    backward_per_node(net, losses, refuse)
    assert not next(net.nodes[0][0].parameters()).grad.isfinite().all()  # type: ignore[index, union-attr]
    assert next(net.nodes[2][2].parameters()).grad.isfinite().all()  # type: ignore[index, union-attr]


def test_recomputed_activations_give_the_same_gradients() -> None:
    net = linear_tree()
    backward_per_node(net, losses_of(net), mean)
    plain = gradients(net)
    net.zero_grad()
    net.recompute("0", "1")
    backward_per_node(net, losses_of(net), mean)
    assert_equal(gradients(net), plain)


def test_half_precision_weights_are_aggregated_in_float32() -> None:
    net, types = linear_tree().to(torch.bfloat16), set()

    def note(matrix: Tensor) -> Tensor:
        types.add(matrix.dtype)
        return mean(matrix)

    outputs = net(X.to(torch.bfloat16))
    backward_per_node(net, {task: output.float().square().mean() for task, output in outputs.items()}, note)
    assert types == {torch.float32}
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.bfloat16}


def test_complex_parameters_count_as_pairs_of_numbers() -> None:
    net = linear_tree(Tree(TASKS, [[TASKS], [TASKS], [TASKS]]))

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return ((torch.complex(x, x) * self.phase).abs(),)

    for node in [node for node in net.members() if node.stage == 2 and not node.is_head]:
        net.replace(node, nn.Sequential(Flat(node.module), Wave()))
    expected = torch.autograd.grad(sum(losses_of(net).values()), net.member("nodes.2.0").module[1].phase)  # type: ignore
    backward_per_node(net, losses_of(net), lambda matrix: matrix.sum(0))
    torch.testing.assert_close(net.member("nodes.2.0").module[1].phase.grad, expected[0])  # type: ignore[index]


class Flat(nn.Module):
    """A stage that returns its one tensor."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Any:
        return self.stage(x)[0]


def test_functions_of_the_number_of_rows_make_an_aggregator_for_each_node() -> None:
    asked: list[int] = []

    class Remembering:
        def __init__(self, rows: int) -> None:
            asked.append(int(rows))
            self.total = 0

        def __call__(self, matrix: Tensor) -> Tensor:
            self.total += 1
            return matrix.sum(0) * self.total

    net = linear_tree()
    weighting = Aggregate(lambda rows: Remembering(rows))
    for _ in range(2):
        net.zero_grad()
        weighting.backward(net, losses_of(net))
    sums = by_hand(net, losses_of(net), lambda _: lambda matrix: 2 * matrix.sum(0))
    assert_equal(gradients(net), sums)
    assert asked == [4, 3, 2]  # once for each node, and with numbers only
    weighting.backward(net, losses_of(net, ("a", "c", "d")))
    assert asked == [4, 3, 2, 3, 2]  # of other tasks, another one


class Broken(nn.Module):
    def forward(self, matrix: Tensor) -> Tensor:
        raise ValueError("no solution")


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (Broken(), r"Broken\(\) failed at nodes.0.0, on the gradients \(4, 15\) of \['a', .*: ValueError: no solution"),
        (lambda matrix: matrix.missing, "failed at nodes.0.0.*has no attribute 'missing'"),
        (lambda matrix: matrix, r"returned shape \(4, 15\) at nodes.0.0; expected a vector of 15 numbers"),
        (lambda matrix: 3, "returned int at nodes.0.0"),
        ("upgrad", "the aggregator is 'upgrad'; expected"),
    ],
)
def test_what_is_no_aggregator_is_named(aggregator: Any, message: str) -> None:
    net = linear_tree()
    with pytest.raises(TrainingError, match=message):
        backward_per_node(net, losses_of(net), aggregator)
    assert all(p.grad is None for p in net.parameters())


def test_an_aggregator_that_remembers_is_not_given_the_matrices_of_several_nodes() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    net = linear_tree()
    with pytest.raises(TrainingError, match=r"GradVac.* remembers the matrices of nodes.0.0 .*Aggregate\(GradVac\)"):
        backward_per_node(net, losses_of(net), aggregation.GradVac())
    backward_per_node(net, losses_of(net, ("a", "d")), aggregation.GradVac())  # these two share one node alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses: {}, "losses is empty; expected the loss of one or more of"),
        (lambda losses: losses | {"e": losses["a"]}, "losses names the unknown task 'e'"),
        (lambda losses: losses | {"b": TARGETS["b"]}, r"the loss of 'b' is shape \(6, 2\); expected a scalar tensor"),
        (lambda losses: losses | {"b": 1.0}, "the loss of 'b' is float"),
        (lambda losses: {"a": losses["a"].detach()}, r"the losses of \['a'\] depend on nothing that is trained"),
    ],
)
def test_losses_without_a_gradient_are_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    net = linear_tree()
    with pytest.raises(TrainingError, match=message):
        backward_per_node(net, change(losses_of(net)), mean)


def test_other_networks_are_refused() -> None:
    net = linear_tree(TREE)
    wrapped = nn.Module()
    wrapped.module = net
    with pytest.raises(TrainingError, match="in a BranchedNetwork, not a Linear"):
        backward_per_node(nn.Linear(1, 1), losses_of(net), mean)
    with pytest.raises(TrainingError, match="not a Module; pass the module inside"):
        backward_per_node(wrapped, losses_of(net), mean)
