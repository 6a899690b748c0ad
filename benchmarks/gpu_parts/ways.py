"""Part 4: ways to compile a tree against each other: streams, regions, channels last, `max-autotune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from inference import make_images
from inference_sides import Run, one_by_one

import branchnet
from branchnet.builder import SeparateNetworks
from gpu_parts.comparing import compare, copied_to, make_case, subject_of
from gpu_parts.settings import Settings
from gpu_parts.verdicts import speed, times_table

SEPARATE = "separate"
"""Options under this name are those of separate networks."""


def ways(mode: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By question the sides and their options; the first side is what the others are compared with."""
    graphs = {"mode": mode}
    last = graphs | {"channels_last": True}
    return {
        "streams": {"one graph": {}, "on streams": {"streams": True}, "one graph, CUDA graphs": graphs},
        "channels last": {
            "as it is": graphs,
            "channels last": last,
            "channels last, BatchNorm folded": last | {"fold_batchnorm": True},
            f"{SEPARATE}, channels last": last,
        },
        "regions": {"every node compiled": graphs, "equal nodes compiled once": graphs | {"regions": True}},
        "max-autotune": {"reduce-overhead": graphs, "max-autotune": {"mode": "max-autotune"}},
    }


def units(settings: Settings) -> dict[str, tuple[str, str, int]]:
    """Batch 1 first; `max-autotune` last, because it compiles for minutes. Attention has no channels to put last."""
    questions = list(ways(settings.mode))
    if settings.rehearsal:  # the others differ in options alone
        questions = questions[:2]
    return {
        f"{network}, {question}, batch {batch}": (network, question, batch)
        for batches, asked in ((settings.batches[:2], questions[:3]), (settings.batches[:1], questions[3:]))
        for batch in batches
        for question in asked
        for network in settings.networks
        if not (network == "vit_small" and question == "channels last")
    }


def measure(settings: Settings, network: str, question: str, batch: int) -> dict[str, Any]:
    """Seconds of all sides in turns, in bfloat16."""
    case = make_case(settings, network, batch, "bf16")
    subject, x = subject_of(case), make_images(case)
    branched = copied_to(branchnet.build(subject.tree, subject.staged), case)

    def compiled(options: dict[str, Any]) -> Callable[[], Run]:
        return lambda: branchnet.compile(branched, x, dynamic=False, copy_outputs=False, **options)

    def separate() -> Run:
        networks = copied_to(SeparateNetworks(subject.networks), case).to(memory_format=torch.channels_last)
        run = one_by_one(list(networks.networks), settings.mode)
        images = x.contiguous(memory_format=torch.channels_last)
        return lambda _: run(images)

    def sides() -> Iterator[tuple[str, Callable[[], Run], int]]:
        for name, options in ways(settings.mode)[question].items():
            yield name, separate if name.startswith(SEPARATE) else compiled(options), 0

    result, _ = compare(sides(), x, settings)
    return result | {"batch": batch, "question": question}


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and each against the first."""
    first, *others = ways("")[result["question"]]
    return [
        *times_table(result["seconds"], result["preparation"], result["batch"]),
        "",
        *(speed(f"{name} against {first}", result["seconds"], first, name) for name in others),
    ]
