"""Part 4: ways to compile a tree against each other: streams, regions, channels last."""

from __future__ import annotations

from typing import Any

from gpu_parts.settings import Settings
from gpu_parts.tree_options import SEPARATE, measure_options, options_page


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
    }


def units(settings: Settings) -> dict[str, tuple[str, str, int]]:
    """Batch 1 first. Attention has no channels to put last."""
    questions = list(ways(settings.mode))
    if settings.rehearsal:  # the others differ in options alone
        questions = questions[:2]
    return {
        f"{network}, {question}, batch {batch}": (network, question, batch)
        for batch in settings.batches[:2]
        for question in questions
        for network in settings.networks
        if not (network == "vit_small" and question == "channels last")
    }


def measure(settings: Settings, network: str, question: str, batch: int) -> dict[str, Any]:
    """Seconds of all sides in turns, in bfloat16."""
    return measure_options(settings, network, ways(settings.mode)[question], batch) | {"question": question}


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and each against the first."""
    first, *others = ways("")[result["question"]]
    return options_page(result, first, others)
