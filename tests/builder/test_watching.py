"""A compiled network follows every change of the network that it was made from, though dynamo does not guard it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder import SeparateNetworks
from branchnet.inference.change_detection import ChangeDetector
from branchnet.inference.compilation import CompiledNetwork

TASKS = ("a", "b", "c", "d")
X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))


def branched() -> BranchedNetwork:
    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
            ).eval()

    cut = branchnet.split_all({t: network(i) for i, t in enumerate(TASKS)}, torch.rand(3, 6), locations=["2", "4"])
    return branchnet.build(Tree(TASKS, [[TASKS], [("a", "b"), ("c", "d")]]), cut, init="donor").eval()


def first_linear(network: BranchedNetwork) -> nn.Linear:
    return next(module for module in network.modules() if isinstance(module, nn.Linear))


def write_in_place(network: BranchedNetwork) -> None:
    with torch.no_grad():
        first_linear(network).weight.mul_(-2)


def replace_parameter(network: BranchedNetwork) -> None:
    linear = first_linear(network)
    linear.weight = nn.Parameter(torch.rand_like(linear.weight))


def replace_data(network: BranchedNetwork) -> None:
    linear = first_linear(network)
    linear.weight.data = torch.rand_like(linear.weight)


def replace_buffer(network: BranchedNetwork) -> None:
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm1d))
    norm.running_mean = torch.full((8,), 3.0)


def load_by_assignment(network: BranchedNetwork) -> None:
    state = {key: value + 1 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)


def without_bias(network: BranchedNetwork) -> None:
    first_linear(network).bias = None


def other_layout(network: BranchedNetwork) -> None:
    linear = first_linear(network)
    linear.weight.data = linear.weight.data.t().contiguous().t()


def exchange_module(network: BranchedNetwork) -> None:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Tanh):
                setattr(module, name, nn.Sigmoid())


def tie(network: BranchedNetwork) -> None:
    one, other = [m for m in network.heads[0].modules() if isinstance(m, nn.Linear)], network.heads[1].modules()
    next(m for m in other if isinstance(m, nn.Linear)).weight = one[0].weight


def train_one_node(network: BranchedNetwork) -> None:
    network.member("nodes.0.0").module.train()


def hook(network: BranchedNetwork) -> None:
    first_linear(network).register_forward_hook(lambda module, args, output: output * 2)


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.adapter(x)


def adapt(network: BranchedNetwork) -> None:
    linear = first_linear(network)
    linear.add_module("adapter", nn.Linear(6, 8))
    linear.__class__ = Adapted


KEEPING = [write_in_place, replace_parameter, replace_data, replace_buffer, load_by_assignment]
"""Changes after which the same code runs, on other numbers."""
OTHERS = [without_bias, other_layout, exchange_module, tie, train_one_node, hook, adapt]


@pytest.mark.parametrize("change", KEEPING + OTHERS)
def test_every_change_counts_at_the_next_call(graphs: list[int], change: Callable[..., None]) -> None:
    network = branched()
    compiled = CompiledNetwork(network)
    before = compiled(X)
    change(network)
    fresh = copy.deepcopy(network)  # training moves running statistics
    found, expected = compiled(X), fresh(X)
    assert any(not torch.equal(before[task], expected[task]) for task in TASKS) or change is other_layout
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task])
    assert len(graphs) == (1 if change in KEEPING else 2)


@pytest.mark.parametrize("regions", [False, True])
def test_an_exchanged_node_counts(graphs: list[int], regions: bool) -> None:
    network = branched()
    compiled = branchnet.compile(network, X, regions=regions)
    before = compiled(X)
    network.nodes[1][1] = copy.deepcopy(network.nodes[1][1])
    with torch.no_grad():
        next(network.nodes[1][1].parameters()).mul_(-2)
    found, expected = compiled(X), network(X)
    assert not torch.equal(before["c"], expected["c"]) and torch.equal(before["a"], expected["a"])
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_modes_are_remembered(graphs: list[int]) -> None:
    network = branched()
    compiled = CompiledNetwork(network)
    for _ in range(3):
        network.train()
        compiled(X)
        network.eval()
        found, expected = compiled(X), network(X)
        assert all(torch.equal(found[task], expected[task]) for task in TASKS)
    assert len(graphs) == 2


def test_another_type_is_compiled_anew(graphs: list[int]) -> None:
    network = branched()
    compiled = CompiledNetwork(network)
    compiled(X)
    network.double()
    assert torch.equal(compiled(X.double())["a"], network(X.double())["a"])
    assert len(graphs) == 2


def test_changes_undone_between_two_calls_are_none() -> None:
    network = branched()
    changes = ChangeDetector(network)
    linear = first_linear(network)
    weight = linear.weight
    linear.weight = nn.Parameter(torch.zeros_like(weight))
    linear.weight = weight
    assert not changes.changed()


def test_tensors_of_other_classes_are_watched_by_identity() -> None:
    class Tagged(Tensor):
        pass

    network = nn.Linear(2, 2)
    network.register_buffer("tag", torch.zeros(2).as_subclass(Tagged))
    changes = ChangeDetector(network)
    assert not changes.changed()
    network.tag = torch.zeros(3).as_subclass(Tagged)
    assert changes.changed() and not changes.changed()


def test_fewer_guards_stay_than_a_network_has_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's own guards grow with the network; those that stay do not."""
    kept: list[int] = []
    from branchnet.inference import torch_compile as module

    original = module.without_module_guards

    def counting(entries: list[object]) -> list[bool]:
        answer = original(entries)
        kept.append(sum(answer))
        return answer

    monkeypatch.setattr(module, "without_module_guards", counting)
    monkeypatch.setattr("branchnet.inference.compilation.compiler_problem", lambda device: "")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, **{**o, "backend": "eager"}))
    for count in (2, 12):
        tasks = tuple(map(str, range(count)))
        made = {t: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).eval() for t in tasks}
        cut = branchnet.split_all(made, X, locations=["1"])
        CompiledNetwork(branchnet.build(Tree.separate(tasks, 1), cut))(X)
    names = 10  # one guard for the name of each further task
    assert len(kept) == 2 and kept[1] - kept[0] <= names, list(itertools.pairwise(kept))


class Bare(nn.Module):
    """A layer with one parameter and no empty place for another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 6, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_pruning_a_layer_of_one_parameter_counts(graphs: list[int]) -> None:
    layer = Bare()
    network = SeparateNetworks({"a": nn.Sequential(layer, nn.Tanh())}).eval()
    compiled = CompiledNetwork(network)
    assert torch.equal(compiled(X)["a"], network(X)["a"])
    prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    assert torch.equal(compiled(X)["a"], network(X)["a"])
    prune.remove(layer, "weight")
    assert torch.equal(compiled(X)["a"], network(X)["a"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_script_modules_are_watched_too() -> None:
    network = nn.Sequential(nn.Linear(6, 8), torch.jit.trace(nn.Linear(8, 2), torch.rand(2, 8)))
    changes = ChangeDetector(network)
    assert not changes.changed()
    network[1] = nn.Linear(8, 2)
    assert changes.changed() and not changes.changed()
