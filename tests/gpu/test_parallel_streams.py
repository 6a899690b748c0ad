"""Branches on parallel streams: slow ones are awaited, outputs are those of the network run eagerly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.inference import make_schedule
from branchnet.inference.streams import open_streams, run_schedule
from tests.gpu.toys import assert_close, branched, images


class Slow(nn.Module):
    """Keeps its stream busy, so that what does not wait for it reads old memory."""

    def forward(self, x: Tensor) -> Tensor:
        torch.cuda._sleep(20_000_000)
        return x + 1


def test_slow_branches_are_awaited(cuda: str) -> None:
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a",), ("b", "c")], [("a",), ("b",), ("c",)]])
    schedule = make_schedule(tree)
    functions = {step.id: Slow() for step in schedule.steps}
    opened = open_streams(torch.device(cuda))
    for start in range(5):
        x = torch.full((1 << 20,), float(start), device=cuda)
        outputs = run_schedule(schedule, functions, x, opened(3))
        assert all(bool((output == start + 4).all()) for output in outputs.values())


def test_branches_run_at_the_same_time(cuda: str) -> None:
    """Three sleeping branches take about as long as one: on one stream they would take three times as long."""
    tree = Tree.separate(("a", "b", "c"), 1)
    schedule = make_schedule(tree)
    functions = {step.id: Slow() if step.id.startswith("nodes") else nn.Identity() for step in schedule.steps}
    opened = open_streams(torch.device(cuda))
    x = torch.zeros(8, device=cuda)
    times = {}
    for name, run in {
        "one": lambda: Slow()(x),
        "three": lambda: run_schedule(schedule, functions, x, opened(3)),
    }.items():
        run()
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times[name] = begin.elapsed_time(end)
    assert times["three"] < 2 * times["one"]


def test_streams_equal_eager_and_outputs_can_be_kept(cuda: str) -> None:
    network = branched().to(cuda)
    compiled = branchnet.compile(network, images(2).to(cuda), streams=True)
    for batch in (2, 5, 16):
        x = images(batch, seed=batch).to(cuda)
        kept = compiled(x)
        compiled(torch.zeros_like(x))
        with torch.no_grad():
            assert_close(kept, network(x))
            assert_close(compiled(x, ["count", "edges"]), network(x, ["count", "edges"]))
