"""Passes and training steps on a CPU with freed memory kept, as branchnet's own loops keep it, and without.

    python benchmarks/freed_memory.py

Two processes take turns, one of them inside `keeping_freed_memory`; prints ratios with intervals and the peaks of
memory, and writes results/freed_memory.md and .json. The gain is what page faults cost on the machine, which is more in
virtual machines than on metal, and nothing where the C library is not glibc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchnet.inference.latency import Latency, ratio_interval
from branchnet.utils.files import write_text
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("mobilenet_v2", "resnet50")
KINDS = ("pass", "training step")
BATCH = {"pass": 32, "training step": 16}
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side, six or more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.rounds < 6:
        parser.error(f"--rounds is {options.rounds}; expected 6 or more, as fewer say nothing")
    rows = [compared(network, kind, options.rounds, options.threads) for network in NETWORKS for kind in KINDS]
    write_text(RESULTS / "freed_memory.json", json.dumps(rows, indent=1) + "\n")
    write_text(RESULTS / "freed_memory.md", page(rows, options.threads))
    print(page(rows, options.threads))


def compared(network: str, kind: str, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds and peaks of both sides, in turns."""
    context = multiprocessing.get_context("spawn")
    sides: dict[bool, tuple[Any, Connection]] = {}
    for kept in (False, True):
        here, there = context.Pipe()
        process = context.Process(target=_side, args=(there, network, kind, kept, threads))
        process.start()
        there.close()
        here.recv()  # warmed up
        sides[kept] = process, here
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for kept in (False, True) if number % 2 else (True, False):
            sides[kept][1].send("once more")
            seconds[kept].append(sides[kept][1].recv())
    peaks = {}
    for kept, (process, connection) in sides.items():
        connection.send("")
        peaks[kept] = connection.recv()
        process.join()
    ratio, low, high = ratio_interval(Latency(tuple(seconds[False])), Latency(tuple(seconds[True])))
    row = {"network": network, "of": kind, "batch": BATCH[kind], "times_as_fast": ratio, "low": low, "high": high}
    row |= {"seconds": seconds[False], "seconds_kept": seconds[True]}
    row |= {"peak_mb": peaks[False], "peak_mb_kept": peaks[True]}
    print(json.dumps(row), flush=True)
    return row


def _side(connection: Connection, name: str, kind: str, kept: bool, threads: int) -> None:
    define_torchvision_operators()
    torch.set_num_threads(threads)
    run = _work(name, kind)
    with keeping_freed_memory() if kept else nullcontext():
        run()
        connection.send(None)
        while connection.recv():
            start = time.perf_counter()
            run()
            connection.send(time.perf_counter() - start)
    connection.send(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _work(name: str, kind: str) -> Callable[[], Any]:
    from torchvision import models

    network: nn.Module = getattr(models, name)()
    images = torch.randn(BATCH[kind], 3, SIZE, SIZE)
    if kind == "pass":
        network.eval()
        return torch.no_grad()(lambda: network(images))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()

    return step


def page(rows: list[dict[str, Any]], threads: int) -> str:
    """The table."""
    lines = ["# Freed memory kept, and returned to the system", ""]
    lines += [f"torch {torch.__version__}, {threads} threads, images of {SIZE} pixels, two processes in turns.", ""]
    lines += [
        "| network | of | images | times as fast kept [95%] | peak memory, MB | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['of']} | {row['batch']} | {row['times_as_fast']:.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}] | {row['peak_mb']} | {row['peak_mb_kept']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
