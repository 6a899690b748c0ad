"""Part 2: N networks as a tree at half the FLOPs against N separate compiled ones, CUDA graphs on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference import close_look, make_images
from inference_page import PAIRS, claim
from inference_sides import ONE_GRAPH, sides

from branchnet.inference import Latency
from gpu_parts.comparing import compare, make_case, subject_of
from gpu_parts.settings import Settings
from gpu_parts.verdicts import speed, times_table

BAR = 1.8
"""How many times as fast as the separate networks the tree of ResNet-50 or ViT-S must be at batch 1.

The separate networks are compiled as everybody would, one after another, and also all in one graph without guards, as
the tree is: what the tree gains over that is gained by sharing alone.
"""
SIDES = {"separate, compiled", "branched, compiled", *(side for pair in PAIRS for side in pair)}
CLOSE_LOOK = 4.0
"""Seconds of measuring alone, in turns, two sides that must hardly differ."""


def units(settings: Settings) -> dict[str, tuple[str, int, str]]:
    """Batch 1 first, which has the bar; bfloat16 before float32."""
    return {
        f"{network}, batch {batch}, {precision}": (network, batch, precision)
        for batch in settings.batches
        for precision in settings.precisions
        for network in settings.networks
    }


def measure(settings: Settings, network: str, batch: int, precision: str) -> dict[str, Any]:
    """Seconds of all sides in turns, and of the close pairs once more."""
    case = make_case(settings, network, batch, precision)
    subject, x = subject_of(case), make_images(case)
    wanted = SIDES | ({ONE_GRAPH} if batch == 1 else set())  # five networks in one graph take long to compile
    ways = (way for way in sides(case, subject, x, Path("nothing is exported")) if way[0] in wanted)
    result, runs = compare(ways, x, settings)
    times = {name: Latency(tuple(samples)) for name, samples in result["seconds"].items()}
    seconds = 0.0 if settings.rehearsal else CLOSE_LOOK
    result["pairs"] = [
        {name: list(one.samples) for name, one in close_look(runs, pair, times, x, seconds=seconds).items()}
        for pair in PAIRS
        if set(pair) <= set(runs)
    ]
    return result | {
        "batch": batch,
        "widths": list(subject.tree.widths),
        "params ratio": subject.ratio("params"),
        "flops ratio": subject.ratio("flops"),
    }


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and the bars."""
    looked: dict[str, list[float]] = {name: samples for pair in result["pairs"] for name, samples in pair.items()}
    latencies = {name: Latency(tuple(samples)) for name, samples in looked.items()}
    return [
        f"Copies of the stages {'-'.join(map(str, result['widths']))}: {result['params ratio']:.1%} of the parameters, "
        f"{result['flops ratio']:.1%} of the multiply-adds of the separate networks.",
        "",
        *times_table(result["seconds"], result["preparation"], result["batch"]),
        "",
        *verdicts(unit, result, latencies),
    ]


def verdicts(unit: str, result: dict[str, Any], looked: dict[str, Latency]) -> list[str]:
    """The bars of the tree, of the fully shared network and of the wrapper."""
    seconds, bar = result["seconds"], BAR if result["batch"] == 1 else None
    text = "the tree against separate networks in one graph"
    alone = [] if bar is None else [speed(text, seconds, ONE_GRAPH, "branched, compiled", bar)]
    return [
        speed("the tree against separate networks", seconds, "separate, compiled", "branched, compiled", bar),
        *alone,
        claim("fully shared compiled / one plain backbone with all heads compiled", looked, *PAIRS[0], 1.03),
        claim("fully shared eager / one plain backbone with all heads eager (the wrapper)", looked, *PAIRS[1], 1.02),
    ]
