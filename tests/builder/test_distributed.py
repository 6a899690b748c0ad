"""Two processes (gloo, CPU) train like one: sharded node by node, and replicated, with all tasks and with some."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder import replicate, shard
from branchnet.errors import BuildError
from tests.builder.toys import TiedStages
from tests.stitching.toys import KINDS, inputs, stitched

STEPS: list[Sequence[str] | None] = [None, ["a"], ["b"], None]
"""The tasks of each step."""


def built() -> BranchedNetwork:
    torch.manual_seed(0)
    made = {t: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)) for t in "ab"}
    cut = branchnet.split_all(made, torch.rand(2, 6), locations=["1", "3"])
    return branchnet.build(Tree(("a", "b"), [[("a", "b")], [("a",), ("b",)]]), cut, init="donor").train()


def built_with_stitches() -> BranchedNetwork:
    """Stitches in front of a node and, in the tree that shares all, in front of a head."""
    torch.manual_seed(0)
    made = {t: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)) for t in "abc"}
    probe = torch.rand(400, 6)
    cut = branchnet.split_all(made, probe[:2], locations=["1", "3"])
    tree = Tree(tuple("abc"), [[tuple("abc")], [("a", "b"), ("c",)]])
    return branchnet.build(tree, cut, init="stitch", probe=probe).train()


MAKE = {"sharded": built, "replicated": built, "stitched, sharded": built_with_stitches}


def data() -> Tensor:
    return torch.rand(len(STEPS), 8, 6, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, tasks: Sequence[str] | None) -> None:
    optimizer.zero_grad()
    outputs = network(x, tasks)
    torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    optimizer.step()


def alone(kind: str) -> dict[str, Tensor]:
    network = MAKE[kind]()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for x, tasks in zip(data(), STEPS, strict=True):
        step(network, optimizer, x, tasks)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def worker(rank: int, port: int, results: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=10))
    mesh = init_device_mesh("cpu", (2,))
    for kind, make in MAKE.items():
        branched = make()
        sharded = "sharded" in kind
        network: nn.Module = shard(branched, mesh=mesh) if sharded else replicate(branched, some_tasks=True)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for x, tasks in zip(data(), STEPS, strict=True):
            step(network, optimizer, x[4 * rank : 4 * rank + 4], tasks)
        whole = {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
            for name, tensor in branched.state_dict().items()
        }
        if sharded:
            assert all(isinstance(parameter, DTensor) for parameter in branched.parameters())
            assert len(list(branched.parameters())) == len(list(make().parameters()))
        if rank == 0:
            torch.save(whole, Path(results) / f"{kind}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, (port, str(tmp_path)), nprocs=2)
    for kind in MAKE:
        expected = alone(kind)
        found = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=f"{kind}: {name}")


def test_parameters_shared_by_nodes_cannot_be_sharded() -> None:
    cut = branchnet.split_all({"a": TiedStages()}, torch.rand(2, 4), locations=["first", "second"])
    with pytest.raises(BuildError, match=r"nodes\.0\.0\.first\.0\.weight.*shared by several nodes"):
        shard(branchnet.build(Tree.shared(("a",), 2), cut, init="donor"))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_stitched_network_gives_the_same_outputs_and_gradients(kind: str) -> None:
    plain, x = stitched(kind), inputs(kind, 6)
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sharded = shard(copy.deepcopy(plain), mesh=init_device_mesh("cpu", (1,)))
        assert {edge: stitch.size for edge, stitch in sharded.stitches.items()} == {
            edge: stitch.size for edge, stitch in plain.stitches.items()
        }
        for tasks in (None, ["b"], ["a", "c"]):
            for network in (plain, sharded):
                network.zero_grad()
                torch.stack([output.square().sum() for output in network(x, tasks).values()]).sum().backward()
            found, expected = sharded(x, tasks), plain(x, tasks)
            for task, output in expected.items():
                torch.testing.assert_close(found[task], output)
            gradients = {
                name: None if parameter.grad is None else parameter.grad.full_tensor()  # type: ignore[union-attr]
                for name, parameter in sharded.named_parameters()
            }
            for name, parameter in plain.named_parameters():
                torch.testing.assert_close(gradients[name], parameter.grad)
    finally:
        dist.destroy_process_group()
