"""The pages: one for each part, made of its record, and a summary of all verdicts."""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from branchnet.utils.files import write_text
from gpu_parts.plan import PARTS, Part
from gpu_parts.records import Record
from gpu_parts.settings import Settings

METHOD = (
    "Sides are measured in turns, round by round; ratios are medians over the rounds of the ratio, with a 95% interval "
    "(bootstrap); a bar that lies inside the interval is met or missed within the noise only. A time is the wall-clock "
    "time of one call, the device waited for. Compiling and warming up are not in it."
)
REHEARSAL = (
    "**A rehearsal on a CPU with tiny networks: its numbers mean nothing.** Not exercised: CUDA graphs, streams, TF32, "
    "Triton and its tuning (graphs were traced and run eagerly), memory of the device, and tests that need CUDA."
)


def write_page(part: Part, record: Record, settings: Settings) -> None:
    """The page of one part, next to its record."""
    content = record.read()
    lines = [f"# {part.title[:1].upper()}{part.title[1:]}", "", _machine(record.identity["machine"]), ""]
    lines += [REHEARSAL if settings.rehearsal else METHOD]
    for unit, outcome in content["units"].items():
        lines += ["", f"## {unit}", ""]
        if "error" in outcome:
            lines += ["Failed:", "", "```", outcome["error"].strip(), "```", *_partial(part, unit, outcome)]
            continue
        lines += [*_page(part, unit, outcome["result"]), *_remarks(outcome)]
    if missing := [unit for unit in content["planned"] if unit not in content["units"]]:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    write_text(record.path.with_suffix(".md"), "\n".join(lines) + "\n")


def write_summary(folder: Path, *, rehearsal: bool) -> list[str]:
    """All verdicts of all pages, as a page; returned as lines."""
    lines = ["# Summary", "", *([REHEARSAL, ""] if rehearsal else [])]
    for part in PARTS:
        path = folder / f"{part.name}.md"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines += [f"## {part.title}", ""]
        fenced = False  # where tracebacks and logs stand
        for line in text.splitlines():
            fenced ^= line == "```"
            if fenced:
                continue
            if line.startswith("## "):
                unit = line.removeprefix("## ")
            elif line.startswith("- "):
                lines.append(f"- {unit}: {line.removeprefix('- ')}")
            elif line.startswith(("Failed:", "Not measured yet")):
                lines.append(f"- {line if line.startswith('Not') else f'{unit}: **failed**'}")
        if not text:
            lines.append("- not measured")
        lines.append("")
    write_text(folder / "summary.md", "\n".join(lines))
    return lines


def _page(part: Part, unit: str, result: dict[str, Any]) -> list[str]:
    try:
        lines: list[str] = import_module(f"gpu_parts.{part.name}").page(unit, result)
    except Exception:  # a part that cannot be imported here must not keep others from being measured
        return ["Failed:", "", "```", traceback.format_exc().strip(), "```"]
    return lines


def _partial(part: Part, unit: str, outcome: dict[str, Any]) -> list[str]:
    """What a unit that failed had measured until then."""
    partial = outcome.get("partial")
    if not partial:
        return []
    if "seconds" not in partial:
        return ["", "Until then:", "", *_page(part, unit, partial)]
    from gpu_parts.verdicts import times_table  # whatever it imports was there when the sides were measured

    table = times_table(partial["seconds"], partial["preparation"], partial["batch"])
    return ["", "Until then, sides in turns only where all of them were ready:", "", *table]


def _machine(machine: dict[str, Any]) -> str:
    others = (f"{name} {value}" for name, value in machine.items() if name != "device")
    return f"{machine['device']}; {', '.join(others)}."


def _remarks(outcome: dict[str, Any]) -> list[str]:
    result = outcome["result"]
    lines = ["", f"Took {outcome['took']:.0f} s, compiling included."]
    if warm := result.get("warm-up"):
        lines[-1] += f" Warm-up calls took {sum(warm.values()):.1f} s."
    if error := outcome.get("later error"):
        lines += ["", "Measured again it failed:", "", "```", error.strip(), "```"]
    for name, text in result.get("tracebacks", {}).items():
        lines += ["", f"{name} does not run here:", "", "```", text.strip(), "```"]
    return lines
