"""Compiled equals eager, without graph breaks, without recompilation beyond what is promised."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import branchnet
from branchnet import Tree
from branchnet.builder import CompiledNetwork, SeparateNetworks, compiler_problem
from branchnet.errors import BuildError

TASKS = tuple("abcd")


def branched() -> branchnet.BranchedNetwork:
    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).eval()

    staged = branchnet.split_all({t: network(i) for i, t in enumerate(TASKS)}, torch.rand(3, 6), locations=["1", "3"])
    return branchnet.build(Tree(TASKS, [[TASKS], [("a", "b"), ("c", "d")]]), staged)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compile with a backend that runs each graph eagerly and counts them."""
    counted: list[int] = []
    compile_ = torch.compile

    def counting(function: object, **options: object) -> object:
        def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
            counted.append(len(graph.graph.nodes))
            return graph.forward

        options.pop("mode", None)
        return compile_(function, backend=backend, **options)  # type: ignore[call-overload]

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", counting)
    return counted


def test_one_graph_for_every_batch_size_from_two_and_one_for_size_one(graphs: list[int]) -> None:
    compiled = CompiledNetwork(branched())
    for batch in (2, 5, 9, 33, 2):
        assert compiled(torch.rand(batch, 6))["a"].shape == (batch, 2)
    assert len(graphs) == 1
    compiled(torch.rand(1, 6))
    assert len(graphs) == 2


def test_every_subset_of_tasks_has_its_own_single_graph(graphs: list[int]) -> None:
    network = branched()
    compiled = CompiledNetwork(network)
    subsets = [s for n in range(1, 5) for s in itertools.combinations(TASKS, n)]
    x = torch.rand(4, 6)
    for _ in range(2):
        for subset in subsets:
            found, expected = compiled(x, subset), network(x, subset)
            assert list(found) == list(subset)
            assert all(torch.equal(found[task], expected[task]) for task in subset)
    assert len(graphs) == len(subsets) == 15


def test_the_callers_tensor_is_not_marked(graphs: list[int]) -> None:
    x = torch.rand(4, 6)
    CompiledNetwork(branched())(x)
    assert not hasattr(x, "_dynamo_dynamic_indices")


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(BuildError, match="'z'"):
        CompiledNetwork(branched())(torch.rand(2, 6), ["z"])


@pytest.mark.parametrize("tasks", ["ab", ["z"], []])
def test_separate_networks_refuse_wrong_tasks(tasks: list[str]) -> None:
    with pytest.raises(BuildError, match="tasks must be a non-empty sequence"):
        SeparateNetworks({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)})(torch.rand(2, 6), tasks)


def test_separate_networks_compile_too(graphs: list[int]) -> None:
    singles = SeparateNetworks({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}).eval()
    found = CompiledNetwork(singles)(torch.rand(2, 6))
    assert {task: tuple(value.shape) for task, value in found.items()} == {"a": (2, 2), "b": (2, 3)}


@pytest.mark.slow
@pytest.mark.skipif(bool(compiler_problem()), reason=f"torch.compile does not work here: {compiler_problem()}")
def test_inductor_equals_eager() -> None:
    network = branched()
    compiled = branchnet.compile(network, torch.rand(2, 6))
    x = torch.rand(7, 6)
    for task, value in compiled(x).items():
        torch.testing.assert_close(value, network(x)[task], rtol=1e-5, atol=1e-6)
