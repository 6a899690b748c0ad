"""Two processes (gloo, CPU) train like one: sharded node by node, and replicated, with all tasks and with some."""

from __future__ import annotations

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

STEPS: list[Sequence[str] | None] = [None, ["a"], ["b"], None]
"""The tasks of each step."""


def built() -> BranchedNetwork:
    torch.manual_seed(0)
    made = {t: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)) for t in "ab"}
    cut = branchnet.split_all(made, torch.rand(2, 6), locations=["1", "3"])
    return branchnet.build(Tree(("a", "b"), [[("a", "b")], [("a",), ("b",)]]), cut, init="donor").train()


def data() -> Tensor:
    return torch.rand(len(STEPS), 8, 6, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, tasks: Sequence[str] | None) -> None:
    optimizer.zero_grad()
    outputs = network(x, tasks)
    torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    optimizer.step()


def alone() -> dict[str, Tensor]:
    network = built()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for x, tasks in zip(data(), STEPS, strict=True):
        step(network, optimizer, x, tasks)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def worker(rank: int, port: int, results: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=10))
    mesh = init_device_mesh("cpu", (2,))
    for kind in ("sharded", "replicated"):
        branched = built()
        network: nn.Module = shard(branched, mesh=mesh) if kind == "sharded" else replicate(branched, some_tasks=True)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for x, tasks in zip(data(), STEPS, strict=True):
            step(network, optimizer, x[4 * rank : 4 * rank + 4], tasks)
        whole = {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
            for name, tensor in branched.state_dict().items()
        }
        if kind == "sharded":
            assert all(isinstance(parameter, DTensor) for parameter in branched.parameters())
            assert len(list(branched.parameters())) == len(list(built().parameters()))
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
    expected = alone()
    for kind in ("sharded", "replicated"):
        found = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=f"{kind}: {name}")


def test_parameters_shared_by_nodes_cannot_be_sharded() -> None:
    cut = branchnet.split_all({"a": TiedStages()}, torch.rand(2, 4), locations=["first", "second"])
    with pytest.raises(BuildError, match=r"nodes\.0\.0\.first\.0\.weight.*shared by several nodes"):
        shard(branchnet.build(Tree.shared(("a",), 2), cut, init="donor"))
