"""What `fit` costs next to a bare PyTorch loop on the same network and loader, and what recorded teachers save.

    python benchmarks/training.py

ResNet-18 for three tasks that share its first half. Rounds of a few steps of `fit` and of the bare loop alternate in
one process: the bare loop runs inside a callback of `fit`, and each is timed alone. Memory is measured in a process for
each side. Writes results/training.md and .json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results" / "training.json"
OUTPUTS = {"a": 10, "b": 5, "c": 3}
LOSS = nn.CrossEntropyLoss()
RATE = 1e-4
CELLS = ((64, 0), (64, 2), (224, 0), (224, 2))
"""Pixels and workers."""
BATCH = {64: 16, 224: 4}
STEPS = {64: 4, 224: 3}
"""Of a round."""
MEMORY_STEPS = 8


@dataclass(frozen=True)
class Comparison:
    """Seconds of a step, and their ratio over rounds."""

    pixels: int
    workers: int
    batch: int
    fit_seconds: float
    bare_seconds: float
    ratio: float
    low: float
    high: float
    rounds: int


def networks() -> dict[str, nn.Module]:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return {task: resnet18(num_classes=outputs) for task, outputs in OUTPUTS.items()}


def branched(size: int) -> Any:
    import branchnet

    staged = branchnet.split_all(networks(), torch.zeros(1, 3, size, size), locations=1)
    return branchnet.build(branchnet.Tree.shared(list(OUTPUTS), 1), staged, init="donor")


class Labelled(TensorDataset):
    """Random images with a label of each task."""

    def __getitem__(self, number: int) -> Any:
        image, *labels = super().__getitem__(number)
        return image, dict(zip(OUTPUTS, labels, strict=True))


def loader(size: int, workers: int) -> DataLoader[Any]:
    torch.manual_seed(1)
    count = 16 * BATCH[size]
    labels = [torch.randint(outputs, (count,)) for outputs in OUTPUTS.values()]
    data = Labelled(torch.randn(count, 3, size, size), *labels)
    return DataLoader(data, BATCH[size], shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def bare_steps(network: nn.Module, batches: DataLoader[Any]) -> Iterator[None]:
    """The loop that a user would write; it does the arithmetic that `fit` does by default."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    network.train()
    while True:
        for images, labels in batches:
            images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            outputs = network(images)
            losses: list[Tensor] = [LOSS(outputs[task], labels[task]) for task in OUTPUTS]
            torch.stack(losses).sum().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            [loss.item() for loss in losses]
            yield


def fit(network: nn.Module, batches: Any, steps: int, callback: Any = None) -> None:
    import branchnet

    branchnet.fit(
        network, batches, dict.fromkeys(OUTPUTS, LOSS), steps=steps, learning_rate=RATE, schedule="constant",
        keep="last", progress=False, callbacks=[callback] if callback else [],
    )  # fmt: skip


def compare(size: int, workers: int, rounds: int) -> Comparison:
    """Rounds of `fit`, each followed by one of the bare loop."""
    from branchnet.inference.latency import Latency, ratio_interval

    bare, of_fit, of_bare = bare_steps(branched(size), loader(size, workers)), [], []
    length, started = STEPS[size], time.perf_counter()

    def alternate(event: Any) -> None:
        nonlocal started
        if event.kind != "step" or event.step % length:
            return
        of_fit.append((time.perf_counter() - started) / length)
        started = time.perf_counter()
        for _ in range(length):
            next(bare)
        of_bare.append((time.perf_counter() - started) / length)
        started = time.perf_counter()

    fit(branched(size), loader(size, workers), length * (rounds + 2), alternate)
    of_fit, of_bare = of_fit[2:], of_bare[2:]  # the first rounds warm up
    ours, theirs = Latency(tuple(of_fit)), Latency(tuple(of_bare))
    ratio, low, high = ratio_interval(ours, theirs)
    return Comparison(size, workers, BATCH[size], _median(of_fit), _median(of_bare), ratio, low, high, rounds)


def peak_growth(side: str, size: int) -> int:
    """Bytes by which the most memory grew in training, measured in this process."""
    network, batches = branched(size), loader(size, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if side == "fit":
        fit(network, batches, MEMORY_STEPS)
    else:
        steps = bare_steps(network, batches)
        for _ in range(MEMORY_STEPS):
            next(steps)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def memory(size: int) -> dict[str, int]:
    """Of both sides, each in a process of its own."""
    found = {}
    for side in ("fit", "bare"):
        command = [sys.executable, __file__, "--peak", side, "--pixels", str(size)]
        found[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return found


def teachers(rounds: int, size: int = 64, steps: int = 4) -> dict[str, float]:
    """Seconds of a step of `distill` with recorded teachers, and with teachers that run on each batch."""
    import branchnet

    donors = {task: network.eval() for task, network in networks().items()}
    network, images = branched(size), torch.randn(128, 3, size, size)
    sides, seconds = {}, {}
    for name, most in {"recorded": 2**31, "run": 0}.items():
        start = time.perf_counter()
        sides[name] = branchnet.Teachers(donors, images, progress=False, recorded_bytes=most)
        seconds[name + "_beginning"] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            history = branchnet.distill(
                network, sides[name], images, steps=steps, batch_size=16, learning_rate=RATE, keep="last",
                progress=False,
            )  # fmt: skip
            if number:
                times[name].append(history.seconds / steps)
    return seconds | {name: _median(values) for name, values in times.items()}


def _median(values: list[float]) -> float:
    return float(torch.tensor(values).median())


def machine() -> str:
    name = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")), platform.processor())  # fmt: skip
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        f"| {one['pixels']} | {one['workers']} | {one['batch']} | {one['fit_seconds'] * 1e3:.0f} | "
        f"{one['bare_seconds'] * 1e3:.0f} | {one['ratio']:.3f} | {one['low']:.3f} to {one['high']:.3f} |"
        for one in found["steps"]
    ]
    peaks, distilled = found["memory"], found["teachers"]
    return "\n".join(
        [
            "# Training",
            "",
            f"Made by `python benchmarks/training.py` on {found['machine']}.",
            "",
            "ResNet-18, three tasks that share its first half. `fit` and a bare loop (the same loader, AdamW, "
            "clipping, channels last) take turns in one process, a few steps each; the ratio is the median over "
            f"{found['steps'][0]['rounds']} rounds of the time of `fit` over that of the bare loop, with its 95% "
            "bootstrap interval. The aim is at most 1.03.",
            "",
            "| pixels | workers | batch | fit, ms a step | bare, ms a step | fit / bare | interval |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Peak memory of {MEMORY_STEPS} steps at {peaks['pixels']} pixels, beyond that before training: `fit` "
            f"{peaks['fit'] / 2**20:.0f} MiB, bare loop {peaks['bare'] / 2**20:.0f} MiB.",
            "",
            f"`distill` at 64 pixels, batches of 16: {distilled['recorded'] * 1e3:.0f} ms a step with recorded "
            f"teachers, {distilled['run'] * 1e3:.0f} ms with teachers that run on each batch. Recording the outputs "
            f"for 128 images took {distilled['recorded_beginning']:.1f} s (without recording, "
            f"{distilled['run_beginning']:.1f} s for the variances alone).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peak", choices=("fit", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--pixels", type=int, default=224, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    define_torchvision_operators()
    if arguments.peak:
        print(peak_growth(arguments.peak, arguments.pixels))
        return
    found: dict[str, Any] = {"machine": machine(), "memory": memory(224) | {"pixels": 224}}
    found["teachers"] = teachers(arguments.rounds)
    found["steps"] = [asdict(compare(*cell, arguments.rounds)) for cell in CELLS]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
