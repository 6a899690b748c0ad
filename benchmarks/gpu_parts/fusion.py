"""Part 3: equal siblings of the last stage fused as one batched computation, against one after another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from inference import make_images
from inference_sides import Run

from branchnet.inference import FusedNodes
from branchnet.inference.fusion_choice import all_fused, each_alone
from branchnet.inference.torch_compile import compiled_apart
from branchnet.stages import call
from gpu_parts.comparing import compare, copied_to, make_case, subject_of
from gpu_parts.settings import Settings
from gpu_parts.verdicts import speed, times_table

BAR = 1.3
"""How many times as fast as unfused, from FROM siblings on."""
FROM = 4


def units(settings: Settings) -> dict[str, tuple[str, int, int]]:
    """Those with a bar at batch 1 first."""
    sizes = [(4, 1)] if settings.rehearsal else [(4, 1), (8, 1), (2, 1), (4, 8), (8, 8), (2, 8)]
    return {
        f"{network}, {siblings} siblings, batch {batch}": (network, siblings, batch)
        for siblings, batch in sizes
        for network in settings.networks
    }


def measure(settings: Settings, network: str, siblings: int, batch: int) -> dict[str, Any]:
    """Seconds of both sides in turns, in bfloat16; all siblings read the same tensors."""
    case = make_case(settings, network, batch, "bf16")
    *before, last = next(iter(subject_of(case).staged.values())).stages
    with torch.no_grad():
        cut: Any = make_images(case)
        for stage in before:
            cut = call(copied_to(stage, case), cut)
    stage = copied_to(last, case)
    nodes = [stage, *(copy.deepcopy(stage) for _ in range(siblings - 1))]

    def graph(function: Callable[..., Any]) -> Callable[..., Any]:
        return compiled_apart(function, mode=settings.mode, dynamic=False, module_guards=False)

    def unfused() -> Run:
        compiled = graph(each_alone)
        return lambda *_: compiled(nodes, [cut] * siblings)

    def fused() -> Run:
        compiled, together = graph(all_fused), FusedNodes(nodes)
        return lambda *_: compiled(together, [cut])

    result, _ = compare([("unfused", unfused, 0), ("fused", fused, 0)], make_images(case), settings)
    return result | {"batch": batch, "siblings": siblings}


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and the bar."""
    bar = BAR if result["siblings"] >= FROM else None
    return [
        *times_table(result["seconds"], result["preparation"], result["batch"]),
        "",
        speed("fused against unfused", result["seconds"], "unfused", "fused", bar),
    ]
