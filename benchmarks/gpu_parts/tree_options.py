"""One tree compiled with several options, next to the separate networks, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def measure_options(
    settings: Settings, network: str, options: Mapping[str, Mapping[str, Any]], batch: int
) -> dict[str, Any]:
    """Seconds of all sides in turns, in bfloat16; the options of each side are those of `branchnet.compile`."""
    case = make_case(settings, network, batch, "bf16")
    subject, x = subject_of(case), make_images(case)
    branched = copied_to(branchnet.build(subject.tree, subject.staged, init="donor"), case)

    def compiled(own: Mapping[str, Any]) -> Callable[[], Run]:
        return lambda: branchnet.compile(branched, x, dynamic=False, copy_outputs=False, **own)

    def separate() -> Run:
        networks = copied_to(SeparateNetworks(subject.networks), case).to(memory_format=torch.channels_last)
        run = one_by_one(list(networks.networks), settings.mode)
        images = x.contiguous(memory_format=torch.channels_last)
        return lambda _: run(images)

    def sides() -> Iterator[tuple[str, Callable[[], Run], int]]:
        for name, own in options.items():
            yield name, separate if name.startswith(SEPARATE) else compiled(own), 0

    result, _ = compare(sides(), x, settings)
    return result | {"batch": batch}


def options_page(result: dict[str, Any], first: str, others: list[str]) -> list[str]:
    """The sides as a table, and each against the first."""
    return [
        *times_table(result["seconds"], result["preparation"], result["batch"]),
        "",
        *(speed(f"{name} against {first}", result["seconds"], first, name) for name in others),
    ]
