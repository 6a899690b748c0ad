"""Sides of one comparison: prepared one after another, warmed up, and measured in turns."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from inference import LOCATIONS, Case, Subject, make_images, make_subject, prepared
from inference_sides import Run
from torch import Tensor

import branchnet
from branchnet import StagedNetwork
from branchnet.inference import compare_latency, measure_latency
from gpu_parts.settings import FEWEST_ROUNDS, Settings

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""On a GPU float32 runs with TF32 on."""
WARM_UP = 4
"""Rounds before those that count: CUDA graphs run once, are recorded in the second call, and replay from the third."""


def make_case(settings: Settings, network: str, batch: int, precision: str) -> Case:
    """The case that `inference.py` knows how to build."""
    return Case(network, settings.tasks, settings.share, batch, settings.device, settings.mode, PRECISIONS[precision])


def subject_of(case: Case) -> Subject:
    """The networks of a case and their tree; all cases of one network have the same."""
    return _subject(case.network, case.tasks, case.share)


@functools.cache
def _subject(network: str, tasks: int, share: int) -> Subject:
    return make_subject(Case(network, tasks, share, 1, "cpu", None))


def staged_on(case: Case) -> dict[str, StagedNetwork]:
    """The staged networks, each with its own weights, in the case's precision on its device."""
    example = make_images(replace(case, batch=1, device="cpu", dtype=torch.float32))
    return {
        task: copied_to(branchnet.split(network, example, locations=LOCATIONS[case.network]), case)
        for task, network in subject_of(case).networks.items()
    }


def copied_to(module: Any, case: Case) -> Any:
    """A copy in evaluation mode, in the case's precision on its device."""
    return copy.deepcopy(module).eval().to(case.device, case.dtype)


def compare(
    ways: Iterable[tuple[str, Callable[[], Run], int]],
    x: Tensor,
    settings: Settings,
    *,
    tops: Mapping[str, Run] | None = None,
) -> tuple[dict[str, Any], dict[str, Run]]:
    """Seconds of every side in every round, what preparing took, errors of sides that do not run here; and the sides.

    Each side is also measured alone as soon as it is ready, for the case that the unit is stopped before all are.

    tops: what is measured in the same rounds and needs no preparation.
    """
    result: dict[str, Any] = {"seconds": {}, "preparation": {}, "warm-up": {}, "errors": {}, "tracebacks": {}}
    result["batch"] = len(x)
    runs: dict[str, Run] = {}
    with torch.no_grad():
        for name, run, _ in prepared(ways, x, result):
            runs[name] = run
            result["seconds"][name] = list(measure_latency(run, x, repeats=FEWEST_ROUNDS, warmup=1).samples)
            settings.keep(result)
        if not runs:
            raise RuntimeError(f"no side runs here: {result['errors']}\n" + "\n".join(result["tracebacks"].values()))
        everything = {**runs, **(tops or {})}
        warm = compare_latency(everything, x, repeats=WARM_UP, warmup=0)
        result["warm-up"] = {name: sum(latency.samples) for name, latency in warm.items()}
        rounds = settings.rounds(sum(latency.samples[-1] for latency in warm.values()))
        times = compare_latency(everything, x, repeats=rounds, warmup=1)
    result["seconds"] = {name: list(latency.samples) for name, latency in times.items()}
    settings.keep(result)
    return result, runs
