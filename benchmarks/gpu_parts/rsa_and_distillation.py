"""Part 6: what RSA takes beyond the networks' forward passes, and a step of distillation against a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from inference import make_images
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork
from branchnet.inference import compare_latency
from branchnet.stages import StagedNetwork, call
from branchnet.training import Teachers
from gpu_parts.comparing import copied_to, make_case, staged_on, subject_of
from gpu_parts.settings import FEWEST_ROUNDS, Settings
from gpu_parts.verdicts import speed, times_table

RSA, FORWARD = "RSA", "forward passes"
DISTILL, BARE = "distill", "bare loop"
STEPS = 6
"""Steps of one round; the first two of each are not counted."""
LARGEST_GRADIENT = 5.0


def units(settings: Settings) -> dict[str, tuple[str, int, int]]:
    """By network: the question, the number of images and the batch size."""
    network = settings.networks[0]
    images, batch = (12, 4) if settings.rehearsal else (500, 32)
    return {
        f"RSA of {network} on {images} images": ("rsa", images, batch),
        f"a step of distillation of {network}, batch {batch}": ("distillation", 2 * batch, batch),
    }


def measure(settings: Settings, question: str, images: int, batch: int) -> dict[str, Any]:
    """Seconds of both sides in turns, in float32 with TF32 on."""
    case = make_case(settings, settings.networks[0], images, "fp32")
    begun = time.perf_counter()
    probe = make_images(case)
    if question == "rsa":
        result = measure_rsa(staged_on(case), probe, batch)
    else:
        subject = subject_of(case)
        donors = {task: copied_to(network, case) for task, network in subject.networks.items()}
        result = measure_steps(
            copied_to(branchnet.build(subject.tree, subject.staged, init="donor"), case), donors, probe, batch
        )
    return {"question": question, "seconds": result, "batch": images if question == "rsa" else batch} | {
        "took": time.perf_counter() - begun
    }


def measure_rsa(networks: dict[str, StagedNetwork], probe: Tensor, batch: int) -> dict[str, list[float]]:
    """The measure on networks that are copies of one, and the same batches through the same stages alone."""

    def rsa(_: Tensor) -> None:
        branchnet.rsa(networks, probe, batch_size=batch)

    def forward(_: Tensor) -> None:
        for network in networks.values():
            for images in probe.split(batch):
                cut: Any = images
                for stage in network.stages:
                    cut = call(stage, cut)

    with torch.no_grad():
        times = compare_latency({RSA: rsa, FORWARD: forward}, probe, repeats=FEWEST_ROUNDS, warmup=1)
    return {name: list(latency.samples) for name, latency in times.items()}


def measure_steps(
    branched: BranchedNetwork, donors: dict[str, nn.Module], images: Tensor, batch: int
) -> dict[str, list[float]]:
    """Rounds of a few steps each way, in turns: the median of each round is its sample."""
    teachers = Teachers(donors, images, progress=False)
    starts: list[float] = []

    def note(*_: Any) -> None:
        if images.is_cuda:
            torch.cuda.synchronize()
        starts.append(time.perf_counter())

    def step_seconds(train: Callable[[], None]) -> float:
        starts.clear()
        with branched.register_forward_pre_hook(note):
            train()
        note()
        return float(np.median(np.diff(starts[-STEPS - 1 :])[2:]))

    def distilled() -> None:
        branchnet.distill(
            branched, teachers, images, steps=STEPS, batch_size=batch, learning_rate=1e-3, keep="last", progress=False
        )

    def bare() -> None:
        bare_loop(branched, teachers, images, batch)

    samples: dict[str, list[float]] = {DISTILL: [], BARE: []}
    ways = {DISTILL: distilled, BARE: bare}
    for turn in range(FEWEST_ROUNDS + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            samples[name].append(step_seconds(ways[name]))
    return {name: found[1:] for name, found in samples.items()}  # the first round warms up


def bare_loop(branched: BranchedNetwork, teachers: Teachers, images: Tensor, batch: int) -> None:
    """What training takes at least: batches, forward and backward passes, the optimizer's step."""
    device = images.device
    targets = teachers.outputs(torch.arange(len(images)), branched.tasks, device)
    variances = {task: teachers.variances(task)[0] for task in branched.tasks}
    optimizer = torch.optim.AdamW(branched.parameters(), lr=1e-3)
    branched.train()
    for _ in range(STEPS):
        index = torch.randperm(len(images))[:batch].to(device)
        outputs = branched(images[index].contiguous(memory_format=torch.channels_last))
        loss = sum((outputs[t] - targets[t][index]).square().mean() / variances[t] for t in branched.tasks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(branched.parameters(), LARGEST_GRADIENT)
        optimizer.step()
    branched.eval()


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and their ratio."""
    rsa = result["question"] == "rsa"
    text = "forward passes alone against RSA" if rsa else "a bare loop's step against distill's"
    baseline, other = (RSA, FORWARD) if rsa else (DISTILL, BARE)
    line = speed(text, result["seconds"], baseline, other)
    share = np.median(np.asarray(result["seconds"][other]) / np.asarray(result["seconds"][baseline]))
    what = "of RSA's time are forward passes" if rsa else "of distill's time are a bare loop's"
    return [*times_table(result["seconds"], {}, result["batch"]), "", line, f"- {share:.0%} {what}"]
