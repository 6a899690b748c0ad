"""Part 7: `max-autotune` against `reduce-overhead`. It compiles for minutes: it comes last, with a limit of its own."""

from __future__ import annotations

from typing import Any

from gpu_parts.settings import Settings
from gpu_parts.tree_options import measure_options, options_page

GRAPHS, TUNED = "reduce-overhead", "max-autotune"


def units(settings: Settings) -> dict[str, tuple[str]]:
    """Batch 1 alone."""
    return {f"{network}, batch 1": (network,) for network in settings.networks}


def measure(settings: Settings, network: str) -> dict[str, Any]:
    """Seconds of both sides in turns, in bfloat16."""
    return measure_options(settings, network, {mode: {"mode": mode} for mode in (GRAPHS, TUNED)}, 1)


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The sides as a table, and their ratio."""
    return options_page(result, GRAPHS, [TUNED])
