"""Two processes (gloo, CPU): the gradients of nodes are averaged, and all processes agree on the weights of losses."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from branchnet.builder import replicate
from branchnet.training import backward_per_node, weighting_of
from branchnet.training.weighting.loss_weightings import DynamicWeightAverage
from tests.training.weighting.networks import TARGETS, TASKS, X, gradients, linear_tree

NAMES = ("rlw", "dwa", "famo", "gradnorm")


def mean(matrix: Tensor) -> Tensor:
    return matrix.mean(0)


def losses_on(network: Any, rows: slice, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    outputs = network(X[rows], tasks)
    return {task: (outputs[task] - TARGETS[task][rows]).square().mean() for task in tasks}


def worker(rank: int, port: int, results: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=10))
    mine = slice(3 * rank, 3 * rank + 3)
    branched = linear_tree()
    network = replicate(branched)
    for _ in range(2):  # the reducer of DistributedDataParallel would notice a pass that it did not see the end of
        branched.zero_grad()
        backward_per_node(branched, losses_on(network, mine), mean)
    if rank == 0:
        torch.save(gradients(branched), Path(results) / "gradients.pt")
    weights: dict[str, Any] = {}
    for name in NAMES:
        torch.manual_seed(0 if name == "rlw" else rank)
        weighting = DynamicWeightAverage(TASKS, every=2) if name == "dwa" else weighting_of(name, TASKS, branched)
        for step in range(4):
            tasks = ("a", "b", "d") if rank and step == 2 else TASKS  # some labels are missing here alone
            weighting.begin_step(step)
            if rank and step == 1:  # no labels here
                weighting.without_losses(branched)
                tasks = ()
            else:
                weighting.backward(branched, losses_on(branched, mine, TASKS if name == "rlw" else tasks))
            with torch.no_grad():
                branched.nodes[0][0].get_parameter("0.weight").mul_(0.9)  # type: ignore[index, union-attr]
            weighting.after_step(lambda tasks=tasks: losses_on(branched, mine, tasks) if tasks else {})
        state = {key: value.tolist() for key, value in weighting.state_dict().items()}
        weights[name] = {"famo": state.get("logits"), "gradnorm": state.get("weight")}.get(name, state["current"])
        branched.load_state_dict(linear_tree().state_dict())
    (Path(results) / f"{rank}.json").write_text(json.dumps(weights))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, (port, str(tmp_path)), nprocs=2)
    alone = linear_tree()
    backward_per_node(alone, losses_on(alone, slice(0, 6)), mean)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for node, expected in gradients(alone).items():
        torch.testing.assert_close(found[node], expected)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for name in NAMES:
        assert first[name] == second[name], name
        assert len(set(first[name])) > 1, name
