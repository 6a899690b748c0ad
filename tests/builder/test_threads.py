"""One network that several threads call at the same time gives each of them what it gives one alone."""

from __future__ import annotations

import inspect
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.inference import task_graphs
from branchnet.inference.torch_compile import UNCOMPILED

TASKS = ("depth", "edges", "scene")
TREE = Tree(TASKS, [[TASKS], [("depth", "edges"), ("scene",)]])
SUBSETS = [list(TASKS), ["depth"], ["edges", "scene"], ["scene"]]
THREADS = 4


@pytest.fixture(scope="module")
def branched() -> branchnet.BranchedNetwork:
    torch.manual_seed(0)

    def network() -> nn.Module:
        body = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
        return nn.Sequential(*body).eval()

    networks = {task: network() for task in TASKS}
    return branchnet.build(TREE, networks, example=batch(0), locations=["2", "4"], init="donor").eval()


def batch(number: int) -> Tensor:
    return torch.rand(3 + number % 4, 6, generator=torch.Generator().manual_seed(number))


def assert_same_in_threads(run: Callable[..., dict[str, Any]], exact: Callable[..., Any], calls: int = 40) -> None:
    """Every thread has its own inputs and sets of tasks; all start together."""
    barrier = threading.Barrier(THREADS)

    def work(thread: int) -> list[dict[str, Any]]:
        barrier.wait()
        with torch.no_grad():
            return [run(batch(number), tasks=SUBSETS[number % 4]) for number in range(thread, calls, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    for thread, outputs in enumerate(found):
        for number, output in zip(range(thread, calls, THREADS), outputs, strict=True):
            with torch.no_grad():
                expected = exact(batch(number), tasks=SUBSETS[number % 4])
            assert list(output) == list(expected)
            for task, value in expected.items():
                torch.testing.assert_close(output[task], value, rtol=1e-5, atol=1e-6)


def test_a_branched_network(branched: branchnet.BranchedNetwork) -> None:
    assert_same_in_threads(branched, branched)


def test_runtimes(branched: branchnet.BranchedNetwork) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for backend in ("eager", "onnxruntime"):
        assert_same_in_threads(branchnet.runtime(branched, example=batch(0), backends=[backend]), branched)


def test_a_compiled_network(branched: branchnet.BranchedNetwork) -> None:
    """Sets of tasks that nobody has asked for before are compiled by the threads themselves."""
    assert_same_in_threads(branchnet.compile(branched, batch(0)), branched)


def test_a_head_that_cannot_be_compiled_is_found_once(
    branched: branchnet.BranchedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that fail on the same head wait for the one that finds it."""
    made = []

    def compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        eager = inspect.getclosurevars(function).nonlocals["eager"]
        made.append(eager)

        def graph(x: Any) -> Any:
            if not eager:
                time.sleep(0.05)  # all threads are inside
                raise UNCOMPILED[0]("no graph")
            return function(x)

        return graph

    monkeypatch.setattr(task_graphs, "compiled_apart", compiled)
    monkeypatch.setattr(task_graphs, "_refusal", lambda head, *_: "no" if head is branched.heads[2] else "")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        network = branchnet.CompiledNetwork(branched)
        assert_same_in_threads(lambda x, tasks: network(x), lambda x, tasks: branched(x))
    assert network.eager_heads == ("scene",) and made == [(), ("scene",)]
    assert len([one for one in told if "called eagerly" in str(one.message)]) == 1
