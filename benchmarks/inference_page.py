"""The measured cases of `inference.py` as a page: one table for each, and what its bars say."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from branchnet import LatencyTable, Tree
from branchnet.inference import Latency, ratio_interval
from branchnet.inference.latency_tables import predicted_rounds

PAIRS = (
    ("fully shared, compiled", "one backbone and N heads, compiled"),
    ("fully shared, eager", "one backbone and N heads, eager"),
)
"""Sides that must hardly differ, so they are measured once more, alone."""


def tables(results: dict[str, Any], explanation: str) -> str:
    """All cases as one page, after how they were measured."""
    lines = ["# Inference: a branched network beside N separate ones", "", *explanation.splitlines(), ""]
    lines += ["Efficiency is (multiply-adds / separate) / (time / separate compiled): 1 means that every multiply-add "]
    lines[-1] += (
        "saved is time saved. FLOPs count one multiply-add as one. Memory is parameters and activations at peak."
    )
    for key, result in results.items():
        lines += ["", f"## {key}", "", *case_table(result), "", *bars(key, result)]
    return "\n".join(lines) + "\n"


def case_table(result: dict[str, Any]) -> list[str]:
    times = {name: median(samples) for name, samples in result["seconds"].items()}
    baseline = times.get("separate, compiled", math.nan)
    batch = result["latency table"]["setting"].split("inputs ")[1].split("x")[0]
    setting = result["setting"]
    widths = "-".join(map(str, result["widths"]))
    lines = [
        f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}, mode {setting['mode']}"
        f"{', equal nodes compiled once' if setting.get('regions') else ''}; "
        f"copies of the stages {widths}; {result['params ratio']:.1%} of the parameters, "
        f"{result['flops ratio']:.1%} of the multiply-adds of the separate networks.",
        "",
        "| | ms (10% to 90%) | inputs/s | / separate compiled | GFLOPs | efficiency | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, samples in result["seconds"].items():
        flops = next(
            (v for kind, v in result["flops"].items() if name.startswith(kind)), result["flops"]["fully shared"]
        )
        ratio = times[name] / baseline
        ordered = sorted(samples)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        peak = f"{result['peak bytes'][name] / 1e6:.0f}" if name in result["peak bytes"] else "-"
        efficiency = flops / result["flops"]["separate"] / ratio
        lines.append(
            f"| {name} | {1e3 * times[name]:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f}) | "
            f"{int(batch) / times[name]:.1f} | {ratio:.3f} | {flops / 1e9:.2f} | {efficiency:.2f} | {peak} |"
        )
    return lines + [f"| {name} | {error} | | | | | |" for name, error in result["errors"].items()]


def bars(key: str, result: dict[str, Any]) -> list[str]:
    times = {name: Latency(tuple(samples)) for name, samples in result["seconds"].items()}
    pairs = [
        {name: Latency(tuple(samples)) for name, samples in result.get("pairs", {}).get(" / ".join(pair), {}).items()}
        for pair in PAIRS
    ]
    table = LatencyTable.from_dict(result["latency table"])
    claims = [
        claim("branched compiled / sum of its nodes compiled one by one", times, "branched, compiled",
              "branched, nodes compiled one by one", 1.10),
        claim("fully shared compiled / one plain backbone with N heads compiled", pairs[0], *PAIRS[0], 1.03),
        claim("fully shared eager / one plain backbone with N heads eager (the wrapper)", pairs[1], *PAIRS[1], 1.02),
        prediction(table, Tree(table.tasks, result["tree"]), result.get("in turns with the table", {})),
    ]  # fmt: skip
    if "branched, compiled, fused" in times:
        gain = times["branched, compiled"].median / times["branched, compiled, fused"].median
        chosen = result.get("stages chosen to be fused")
        claims.append(
            f"- fused everywhere runs at {gain:.2f} times the speed of unfused"
            + ("" if chosen is None else f'; `fuse="auto"` fuses {[table.locations[s] for s in chosen] or "no stage"}')
        )
    if ", cuda" in key and key.startswith("resnet50, 5 tasks, 50%, batch 1,"):
        claims.append(
            claim("branched compiled / separate compiled", times, "branched, compiled", "separate, compiled", 1 / 1.8)
        )
    if "branched, compiled" not in times:
        return claims
    speed, of_product = beside_ceiling(times["branched, compiled"], result["flops"]["branched"], result, "product")
    moved, of_copy = beside_ceiling(
        times["branched, compiled"], result["peak bytes"]["branched, compiled"], result, "copy"
    )
    claims.append(
        f"- branched compiled: {speed / 1e9:.0f} G multiply-adds/s, {of_product:.0%} of a large product's; "
        f"{moved / 1e9:.1f} GB/s counting weights and peak activations once, {of_copy:.0%} of a copy's"
    )
    return claims


def beside_ceiling(run: Latency, amount: float, result: dict[str, Any], name: str) -> tuple[float, float]:
    """What a run does per second, and that as a share of what the device reached in the same rounds."""
    top = result["ceilings"][name]
    share = ratio_interval(Latency(tuple(top["seconds"])), run)[0] * amount / top["amount"]
    return amount / run.median, share


def prediction(table: LatencyTable, tree: Tree, beside: dict[str, list[float]]) -> str:
    """The table's prediction against the tree's time of the same rounds, and whether they lie within 10%."""
    if "branched, compiled" not in beside:
        return "- prediction of the latency table: not measured in turns with the tree"
    predicted, measured = predicted_rounds(table, tree), Latency(tuple(beside["branched, compiled"]))
    ratio, low, high = ratio_interval(predicted, measured)
    inside, outside = low >= 0.9 and high <= 1.1, high < 0.9 or low > 1.1
    verdict = judged(0.9 <= ratio <= 1.1, settled=inside or outside, rounds=len(measured.samples))
    return (
        f"- predicted by the latency table {1e3 * predicted.median:.1f} ms, measured in turns with it "
        f"{1e3 * measured.median:.1f} ms; predicted / measured: {ratio:.3f} (95%: {low:.3f} to {high:.3f}; "
        f"bar: 0.90 to 1.10): {verdict}"
    )


def claim(text: str, times: dict[str, Latency], one: str, other: str, bar: float) -> str:
    """The ratio of two times with its 95% interval, and whether it meets its bar."""
    if one not in times or other not in times:
        return f"- {text}: not measured"
    ratio, low, high = ratio_interval(times[one], times[other])
    verdict = judged(ratio <= bar, settled=high <= bar or low > bar, rounds=len(times[one].samples))
    rounds = len(times[one].samples)
    return f"- {text}: {ratio:.3f} (95% of {rounds} rounds: {low:.3f} to {high:.3f}; bar: {bar:.2f}): {verdict}"


def judged(met: bool, *, settled: bool, rounds: int) -> str:
    """The verdict in words. Of fewer than six rounds no interval holds the median with 95%, so they settle nothing."""
    if not settled or rounds < 6:
        return f"{'met' if met else 'missed'} within the noise"
    return "met" if met else "**missed**"
