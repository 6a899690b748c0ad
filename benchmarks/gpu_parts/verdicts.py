"""How many times as fast one side is as another, and whether that meets its bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from inference_page import judged

from branchnet.inference import Latency, ratio_interval

Samples = Mapping[str, Sequence[float]]


def speed(text: str, seconds: Samples, baseline: str, other: str, bar: float | None = None) -> str:
    """A line: the median over the rounds of `baseline / other`, its 95% interval, and the bar that it must reach."""
    if baseline not in seconds or other not in seconds:
        return f"- {text}: not measured"
    ratio, low, high = ratio_interval(Latency(tuple(seconds[baseline])), Latency(tuple(seconds[other])))
    rounds = len(seconds[other])
    line = f"- {text}: {ratio:.3f} times as fast (95% of {rounds} rounds: {low:.3f} to {high:.3f}"
    if bar is None:
        return f"{line})"
    return f"{line}; bar: {bar:.2f}): {judged(ratio >= bar, settled=low >= bar or high < bar, rounds=rounds)}"


def times_table(seconds: Samples, preparation: Mapping[str, float], batch: int) -> list[str]:
    """A table of all sides: median, spread, inputs per second, and what compiling took, which is not in the times."""
    lines = ["| | ms (10% to 90%) | inputs/s | compile and first call, s |", "|---|---|---|---|"]
    for name, samples in seconds.items():
        ordered = sorted(samples)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        ready = f"{preparation[name]:.1f}" if name in preparation else "-"
        lines.append(
            f"| {name} | {1e3 * median(samples):.3f} ({1e3 * low:.3f} to {1e3 * high:.3f}) | "
            f"{batch / median(samples):.0f} | {ready} |"
        )
    return lines
