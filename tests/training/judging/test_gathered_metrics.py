"""Metrics of several processes are those of all their samples."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from branchnet.training import Metric, area_under_roc, mean_iou, rmse

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(20, 3, 4, generator=GENERATOR), torch.randint(0, 3, (20, 4), generator=GENERATOR)
NUMBERS, ANSWERS = torch.randn(20, generator=GENERATOR), (torch.rand(20, generator=GENERATOR) > 0.5).float()


def cases() -> list[tuple[Metric, torch.Tensor, torch.Tensor]]:
    return [
        (mean_iou(3), LOGITS, CLASSES),
        (rmse("m"), NUMBERS, ANSWERS),
        (area_under_roc(), NUMBERS, ANSWERS),
    ]


def gathered(rank: int, count: int, first: int) -> list[float]:
    found = []
    for metric, output, target in cases():
        running = metric.accumulation()
        for row in range(first + rank, 20, count):
            running.update(output[row : row + 1], target[row : row + 1])
        running.gather()
        found.append(running.result())
    return found


def worker(rank: int, port: int, results: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=5))
    torch.save([gathered(rank, 2, 0), gathered(rank, 1, 19 * rank)], Path(results) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        halves, all_of_one = torch.load(tmp_path / f"{rank}.pt")
        assert halves == pytest.approx(gathered(0, 1, 0))
        assert all_of_one == pytest.approx(gathered(0, 1, 0))  # the second process has no sample


def test_alone_nothing_changes() -> None:
    for metric, output, target in cases():
        running = metric.accumulation()
        running.update(output, target)
        before = running.result()
        running.gather()
        assert running.result() == before
