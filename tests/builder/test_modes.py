"""Running part of a network, modes and freezing node by node, and stages whose activations are computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.affinity.probes import read_probe
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.errors import BuildError, SplitError
from branchnet.stages.interface import call_form
from branchnet.training import distill
from tests.builder.toys import KINDS, LOCATIONS, TiedStages, TwoInputs, images, networks, split_networks, staged

TASKS = tuple(KINDS)
DONORS = networks()
STAGED = staged(DONORS)
DEPTH = len(LOCATIONS)
TREE = Tree(TASKS, [[TASKS]] * 2 + [[("depth", "edges"), ("scene", "count")]] * 3)


def built() -> BranchedNetwork:
    return branchnet.build(TREE, STAGED, init="donor")


def squares(network: BranchedNetwork, x: Tensor) -> Tensor:
    return torch.stack([output.square().mean() for output in network(x).values()]).sum()


def test_an_unknown_task_is_named_with_the_nearest_known() -> None:
    with pytest.raises(BuildError, match="did you mean 'scene'"):
        built()(images(), tasks=["scenes", "depth"])
    with pytest.raises(BuildError, match="did you mean 'edges'"):
        built().path("edge")


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs_by_position_or_name(named: bool) -> None:
    made = {task: TwoInputs() for task in "ab"}
    left, right = torch.rand(5, 3), torch.rand(5, 4)
    example = {"left": left, "right": right} if named else (left, right)
    net = branchnet.build(Tree.separate(made, 2), branchnet.split_all(made, example, locations=["first", "mix"]))
    given = {"right": right, "left": left} if named else (left, right)
    for outputs in (net(given), net((left, right))):
        assert all(torch.equal(outputs[task], network(left, right)) for task, network in made.items())
    with pytest.raises(BuildError, match="1 inputs were given; expected 2"):
        net(left)
    with pytest.raises(BuildError, match="the inputs are a list"):
        net([left, right])
    with pytest.raises(
        BuildError, match="did you mean 'right' instead of 'rigth'" if named else "expected .'2 without"
    ):
        net({"left": left, "rigth": right})


def test_inputs_of_a_wrong_shape_are_compared_with_the_example() -> None:
    with pytest.raises(BuildError, match=r"inputs of shape \(2, 1, 32, 32\) float32; expected \(2, 3, 32, 32\)"):
        built()(torch.rand(2, 1, 32, 32))
    with pytest.raises(BuildError, match="int64"):
        built()(torch.ones(2, 3, 32, 32, dtype=torch.int64))


def test_an_error_inside_a_fitting_call_is_not_renamed() -> None:
    net = built()

    def fail(*_: object) -> None:
        raise ValueError("of its own")

    net.member("nodes.2.0").module.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="of its own"):
        net(images())


def test_one_node_alone_changes_its_mode() -> None:
    net = built()
    net.member("nodes.1.0").module.train()
    before = copy.deepcopy(net.state_dict())
    net(images(4))
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed and all(name.startswith("nodes.1.0.") and name.endswith(statistics) for name in changed)
    with pytest.raises(BuildError, match=r"unknown node 'nodes\.1\.1'; did you mean"):
        net.member("nodes.1.1")


def test_a_frozen_task_keeps_its_output_to_the_bit_while_others_are_trained() -> None:
    net = built()
    net.freeze("depth")
    x = images(8)
    with torch.no_grad():
        before = net(x)
    assert net.frozen == {"nodes.0.0", "nodes.1.0", "nodes.2.0", "nodes.3.0", "nodes.4.0", "heads.0"}
    distill(net, DONORS, x, steps=3, batch_size=4, learning_rate=1e-3, keep="last", progress=False)
    with torch.no_grad():
        after = net(x)
    assert torch.equal(after["depth"], before["depth"])
    assert not any(torch.equal(after[task], before[task]) for task in ("edges", "scene", "count"))


def test_freezing_is_undone_and_survives_train() -> None:
    net = built().train()
    net.freeze("nodes.2.1", "scene")
    assert not net.train().member("nodes.2.1").module.training and net.member("nodes.2.0").module.training
    net.unfreeze("scene")
    assert net.frozen == frozenset() and net.member("nodes.2.1").module.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.freeze("nodes.0.0")
    net.eval().unfreeze("nodes.0.0")
    assert not net.member("nodes.0.0").module.training
    with pytest.raises(BuildError, match=r"unknown node or task 'nodes\.7\.0'"):
        net.freeze("nodes.7.0")


class Noisy(nn.Module):
    """BatchNorm and dropout, which a second run could do differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.second = nn.Sequential(
            nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 16)
        )
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("locations", [("first",), ("second",), ("first", "second")])
def test_recomputed_stages_train_exactly_alike_and_keep_less(locations: tuple[str, ...]) -> None:
    made = {task: Noisy() for task in "ab"}
    x = torch.rand(8, 6)
    cut = branchnet.split_all(made, x, locations=["first", "second"])
    plain = branchnet.build(Tree(("a", "b"), [[("a", "b")], [("a",), ("b",)]]), cut, init="donor").train()
    saving = copy.deepcopy(plain)
    saving.recompute(*locations)
    assert saving.recomputed == {("first", "second").index(name) for name in locations}
    kept = []
    for net in (plain, saving):
        torch.manual_seed(3)
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = squares(net, x)
        loss.backward()
        kept.append(sum(sizes))
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), saving.buffers(), strict=True))
    assert kept[1] < kept[0]
    saving.recompute()
    assert not saving.recomputed
    with pytest.raises(BuildError, match="did you mean 'second'"):
        saving.recompute("secnd")


def test_a_frozen_node_keeps_what_it_shares_with_one_that_is_let_go() -> None:
    made = {task: TiedStages() for task in "ab"}
    cut = branchnet.split_all(made, torch.rand(2, 4), locations=["first", "second"])
    network = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor")
    network.freeze("nodes.0.0", "nodes.1.0")
    network.unfreeze("nodes.1.0")
    assert not network.get_parameter("nodes.0.0.first.0.weight").requires_grad
    assert network.get_parameter("nodes.1.0.second.0.bias").requires_grad
    network.unfreeze("nodes.0.0")
    assert all(parameter.requires_grad for parameter in network.parameters())


class OnlyEvaluated(nn.Module):
    """Its training mode cannot be followed: it decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if self.training and float(x.sum()) > 0:
            x = -x
        return self.out(x)  # type: ignore[no-any-return]


def test_a_refused_training_mode_changes_nothing_and_frozen_nodes_do_not_mind_it() -> None:
    made = {task: OnlyEvaluated().eval() for task in "ab"}
    cut = branchnet.split_all(made, torch.rand(3, 4), locations=["first", "norm"])
    network = branchnet.build(Tree(("a", "b"), [[("a", "b")], [("a",), ("b",)]]), cut, init="donor")
    modes = [module.training for module in network.modules()]
    with pytest.raises(SplitError, match="can only be evaluated"):
        network.train()
    assert [module.training for module in network.modules()] == modes and not any(modes)
    with pytest.raises(SplitError, match="can only be evaluated"):
        cut["a"].train()
    assert not any(module.training for module in cut["a"].modules())
    network.freeze("a", "b")
    assert network.train().training and not any(node.module.training for node in network.members())


def test_tasks_may_come_from_a_generator() -> None:
    assert list(built()(images(), tasks=(task for task in ("scene", "depth")))) == ["depth", "scene"]


class Dropping(nn.Module):
    """One Dropout and one BatchNorm in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.drop(self.first(x)))
        return self.out(self.norm(self.drop(self.second(x))))  # type: ignore[no-any-return]


def test_a_frozen_node_stays_in_evaluation_with_what_it_shares() -> None:
    cut = branchnet.split_all({task: Dropping() for task in "ab"}, torch.rand(3, 4), locations=["first", "second"])
    network = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor")
    network.freeze("nodes.0.0", "nodes.1.0")
    network.train()
    frozen = network.member("nodes.1.0").module
    assert not any(module.training for module in frozen.modules())
    assert network.member("heads.0").module.training


def test_modules_beside_the_nodes_follow_the_mode_of_the_network() -> None:
    network = built()
    network.augment = nn.Dropout()
    assert not network.eval().augment.training
    seen: list[bool] = []
    network.augment.train = lambda mode=True: seen.append(mode)  # type: ignore[method-assign, assignment]
    network.train()
    network.eval()
    assert seen == [True, False]  # layers that do something at each change of mode do it once


def test_nodes_that_cannot_be_trained_are_not_let_go_in_training() -> None:
    made = {task: OnlyEvaluated().eval() for task in "ab"}
    cut = branchnet.split_all(made, torch.rand(3, 4), locations=["first", "norm"])
    network = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor")
    network.freeze("a", "b")
    network.train()
    with pytest.raises(SplitError, match="can only be evaluated"):
        network.unfreeze("nodes.1.0")
    assert "nodes.1.0" in network.frozen and not any(p.requires_grad for p in network.parameters())
    network.heads[0] = nn.Sequential(network.heads[0])
    network.frozen = frozenset()
    with pytest.raises(SplitError, match="can only be evaluated"):
        network.eval().train()
    assert not any(module.training for module in network.modules())
    cut["a"].head = nn.Identity()
    with pytest.raises(SplitError, match="can only be evaluated"):
        cut["a"].train()


@pytest.mark.parametrize("training", [False, True])
def test_stitches_have_the_mode_of_the_network_that_they_are_put_into(training: bool) -> None:
    made = split_networks()
    tree = Tree.shared(list(made), len(LOCATIONS))
    probe = read_probe(images(120, seed=5), 32, call_form(next(iter(made.values()))))
    branched = branchnet.build(tree, made, init="donor").train(training)
    stitch_donors(branched, made, probe)
    assert branched.stitches
    assert {module.training for module in branched.modules()} == {training}
