"""Branches on parallel streams: nothing is read before it is written, no memory is let go too early, outputs are equal.

The plan and its execution are checked without a GPU, by what happens before what. Streams are queues; an event behind a
queue's last entry, and a wait for it in another queue, are all that orders entries of different queues.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import branchnet
from branchnet import Tree
from branchnet.errors import BuildError
from branchnet.inference import compilation, make_schedule
from branchnet.inference import streams as streams_module
from branchnet.inference.schedule import INPUTS, Schedule
from branchnet.inference.streams import check_streams, run_schedule
from branchnet.stages import call
from tests.builder.toys import KINDS, Unruly, images, linear_tree, split_networks
from tests.stitching import toys as stitching


@dataclass(frozen=True)
class Read:
    """A node's output: which node, and on which stream at which place it was computed."""

    node: str
    stream: int
    place: int


@dataclass
class Recorded:
    """Streams that note the order of things, and find what is read too early (vector clocks)."""

    count: int
    now: list[list[int]] = field(init=False)
    current: int = 0
    errors: list[str] = field(default_factory=list)
    used: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.now = [[0] * self.count for _ in range(self.count)]
        self.now[0][0] = 1  # the inputs are there when stream 0 gets here

    @contextmanager
    def issuing_to(self, stream: int) -> Iterator[None]:
        self.current = stream
        yield
        self.current = 0

    def event_behind(self, stream: int) -> list[int]:
        return list(self.now[stream])

    def wait(self, stream: int, event: Sequence[int]) -> None:
        self.now[stream] = [max(pair) for pair in zip(self.now[stream], event, strict=True)]

    def uses(self, stream: int, value: Read) -> None:
        self.used.add((value.node, stream))

    def read(self, value: Read) -> None:
        """Note what is read on the current stream, and that it is not there yet if nothing says that it is."""
        if self.now[self.current][value.stream] < value.place:
            self.errors.append(f"stream {self.current} reads {value.node} before it is there")

    def compute(self, node: str, value: Read) -> Read:
        self.read(value)
        self.now[self.current][self.current] += 1
        return Read(node, self.current, self.now[self.current][self.current])


def recorded(schedule: Schedule) -> tuple[Recorded, dict[str, Read]]:
    streams = Recorded(len(schedule.tasks))
    functions = {step.id: lambda value, name=step.id: streams.compute(name, value) for step in schedule.steps}
    outputs = run_schedule(schedule, functions, Read(INPUTS, 0, 1), streams)
    for output in outputs.values():
        streams.read(output)
    return streams, outputs


def order(schedule: Schedule) -> nx.DiGraph:
    """What happens before what, by the plan alone."""
    graph = nx.DiGraph()
    last: dict[int, str] = {0: INPUTS}
    for step in schedule.steps:
        if step.stream in last:
            graph.add_edge(last[step.stream], step.id)
        if step.waits:
            graph.add_edge(step.reads, step.id)
        last[step.stream] = step.id
    graph.add_edges_from((end, "end") for stream, end in last.items() if stream == 0 or end in schedule.awaited)
    return graph


names = st.integers(1, 9).map(lambda n: tuple(f"t{i}" for i in range(n)))


@given(tasks=names, depth=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_everything_is_there_before_it_is_read_and_all_are_awaited(
    tasks: tuple[str, ...], depth: int, seed: int
) -> None:
    draw = random.Random(seed)
    tree = branchnet.random_tree(tasks, depth, seed=draw)
    wanted = tuple(sorted(draw.sample(tasks, draw.randint(1, len(tasks)))))
    schedule = make_schedule(tree, wanted)
    before = order(schedule)
    assert all(
        nx.has_path(before, step.reads, step.id) and nx.has_path(before, step.id, "end") for step in schedule.steps
    )
    # what is computed, by the tree alone
    needed = {f"nodes.{d}.{tree.cluster_of(task, d)}" for task in wanted for d in range(depth)}
    assert sorted(step.id for step in schedule.steps) == sorted(needed | {f"heads.{tasks.index(t)}" for t in wanted})
    for step in schedule.steps:
        kind, *numbers = step.id.split(".")
        stage = depth if kind == "heads" else int(numbers[0])
        served = {task for task in wanted if tree.cluster_of(task, min(stage, depth - 1)) == int(numbers[-1])}
        member = tasks[int(numbers[0])] if kind == "heads" else min(served)
        parent = f"nodes.{stage - 1}.{tree.cluster_of(member, stage - 1)}" if stage else INPUTS
        assert step.reads == parent
    # and as it is issued
    streams, outputs = recorded(schedule)
    assert not streams.errors and list(outputs) == list(wanted)
    at = {step.id: step.stream for step in schedule.steps} | {INPUTS: 0}
    elsewhere = {(step.reads, step.stream) for step in schedule.steps if at[step.reads] != step.stream}
    assert streams.used == elsewhere | {(output.node, 0) for output in outputs.values() if output.stream}


@given(tasks=names, depth=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_wait_can_be_left_out(tasks: tuple[str, ...], depth: int, seed: int) -> None:
    schedule = make_schedule(branchnet.random_tree(tasks, depth, seed=random.Random(seed)))
    waiting = [step for step in schedule.steps if step.waits]
    assert len(waiting) == len(tasks) - 1  # each side stream waits once
    for left_out in waiting:
        steps = tuple(replace(step, waits=step.waits and step != left_out) for step in schedule.steps)
        assert recorded(replace(schedule, steps=steps))[0].errors


def test_the_plan_reads_like_the_tree() -> None:
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a", "b"), ("c",)], [("a",), ("b",), ("c",)]])
    assert str(make_schedule(tree)).splitlines() == [
        "stream 0 (a): nodes.0.0, nodes.1.0, nodes.2.0, heads.0",
        "stream 1 (b): after nodes.1.0: nodes.2.1, heads.1",
        "stream 2 (c): after nodes.0.0: nodes.1.1, nodes.2.2, heads.2",
        "stream 0 waits for stream 1, stream 2",
    ]
    assert str(make_schedule(tree, ["c"])) == "stream 0 (c): nodes.0.0, nodes.1.1, nodes.2.2, heads.2"
    with pytest.raises(BuildError, match="'d'"):
        make_schedule(tree, ["d"])


class OneQueue:
    """A device whose streams are one queue."""

    def issuing_to(self, stream: int) -> Any:
        return nullcontext()

    def event_behind(self, stream: int) -> None: ...

    def wait(self, stream: int, event: None) -> None: ...

    def uses(self, stream: int, value: Any) -> None: ...


@pytest.mark.parametrize("seed", range(3))
def test_the_outputs_are_the_networks_to_the_bit(seed: int) -> None:
    network = branchnet.build(branchnet.random_tree(tuple(KINDS), 5, seed=seed), split_networks(), init="donor").eval()
    functions = {node.id: lambda cut, module=node.module: call(module, cut) for node in network.members()}
    x = images(2, seed=seed)
    with torch.no_grad():
        for tasks in (None, ["scene"], ["count", "edges"]):
            found = run_schedule(make_schedule(network.tree, tasks), functions, x, OneQueue())
            expected = network(x, tasks)
            assert list(found) == list(expected)
            assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.mark.parametrize("kind", stitching.KINDS)
def test_stitched_networks_give_their_outputs(kind: str) -> None:
    network, x = stitching.stitched(kind), stitching.inputs(kind, 5)
    functions = {node.id: lambda cut, module=node.module: call(module, cut) for node in network.members()}
    with torch.no_grad():
        for tasks in (None, ["b"], ["a", "c"]):
            found = run_schedule(make_schedule(network.tree, tasks), functions, x, OneQueue())
            expected = network(x, tasks)
            assert list(found) == list(expected)
            assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.fixture
def one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (streams_module, compilation):
        monkeypatch.setattr(module, "check_streams", lambda device, mode: None)
    monkeypatch.setattr(streams_module, "open_streams", lambda device: lambda count: OneQueue())


def test_equal_nodes_share_one_full_graph_for_all_batch_sizes(graphs: list[int], one_queue: None) -> None:
    network = linear_tree()
    compiled = branchnet.compile(network, torch.rand(2, 6), streams=True)
    for batch in (2, 7, 33):
        x = torch.rand(batch, 6)
        for tasks in (None, ["c"], ["a", "d"]):
            found, expected = compiled(x, tasks), network(x, tasks)
            assert list(found) == list(expected)
            assert all(torch.equal(found[task], expected[task]) for task in expected)
    assert len(graphs) == 3  # one for each stage, one for all heads
    compiled(torch.rand(1, 6))
    assert len(graphs) == 6


@pytest.mark.parametrize("options", [{}, {"fold": None}])
def test_compiled_stitched_networks_give_their_outputs(
    options: dict[str, Any], graphs: list[int], one_queue: None
) -> None:
    network, x = stitching.stitched("images"), stitching.inputs("images", 5)
    compiled = branchnet.compile(network, x, streams=True, **options)
    with torch.no_grad():
        for tasks in (None, ["b"], ["a", "c"]):
            found, expected = compiled(x, tasks), network(x, tasks)
            assert list(found) == list(expected) and graphs
            for task, output in expected.items():
                torch.testing.assert_close(found[task], output, rtol=1e-4, atol=1e-5)


def test_a_head_that_cannot_be_compiled_is_named_and_runs_eagerly(graphs: list[int], one_queue: None) -> None:
    network = linear_tree()
    network.heads[1] = Unruly()
    with pytest.warns(UserWarning, match="the head of 'b' cannot be compiled"):
        compiled = branchnet.compile(network, torch.rand(2, 6), streams=True)
    x = torch.rand(3, 6)
    assert compiled.eager_heads == ("b",) and torch.equal(compiled(x)["b"], network(x)["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the network is on 'cpu'; expected one on a CUDA device"),
        ({"mode": "reduce-overhead"}, "mode='reduce-overhead', which records CUDA graphs"),
        ({"fuse": True}, "fuse=True, streams=True and regions=False"),
        ({"regions": True}, "streams=True and regions=True"),
        ({"fuse": "auto"}, "fuse='auto', streams=True"),
    ],
)
def test_what_cannot_run_on_streams_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.compile(linear_tree(), torch.rand(2, 6), streams=True, **options)
    with pytest.raises(BuildError, match="'mps'"):
        check_streams("mps", None)
