"""Everything that is to be measured on a GPU, in one command, for the minutes that there is one.

    python benchmarks/gpu.py --minutes 8
    python benchmarks/gpu.py --minutes 5 --parts trees fusion --again
    python benchmarks/gpu.py --device cpu --minutes 1 --results rehearsal

It runs from a bare checkout with torch, numpy, scipy, networkx, scikit-learn, safetensors, pytest, timm and torchvision
installed, without a network. Parts run by worth, each in processes of its own and for its own time; then what is left
goes on, and what failed is tried once more. Results are written as they come, to `results/gpu/DEVICE`: a crash, a hang
or a memory error costs one comparison, whose traceback stands in the results. Started again, it goes on where it
stopped: what was measured with the same code and settings on the same device is kept, what failed is tried again.
Nothing is replaced before there is something new. On a CPU tiny networks run through the same code, into
`results/gpu/rehearsal`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]

import torch  # noqa: E402
from gpu_parts.pages import write_summary  # noqa: E402
from gpu_parts.plan import PARTS, Part, rehearsed  # noqa: E402
from gpu_parts.processes import missing, run_parts  # noqa: E402
from gpu_parts.records import Record, code_of  # noqa: E402
from gpu_parts.settings import Settings, folder_name, machine  # noqa: E402

RESERVE = 5.0
"""Seconds at the end for the summary."""


def main() -> None:
    arguments = parsed()
    settings = Settings(arguments.device)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --device cpu rehearses with tiny networks")
    about = machine(arguments.device)
    chosen = [rehearsed(part) if settings.rehearsal else part for part in PARTS if part.name in arguments.parts]
    folder = arguments.results / folder_name(settings, about)
    records = {
        part: Record(
            folder / f"{part.name}.json",
            {"settings": settings.to_dict(), "code": code_of(part.name), "machine": about},
        )
        for part in chosen
    }
    if arguments.measure:
        from gpu_parts.measuring import measure_parts

        measure_parts(records, settings, arguments.until)
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    try:
        for record in records.values():
            record.start(again=arguments.again)
        run_all(records, settings, arguments, time.time() + 60 * arguments.minutes - RESERVE)
    finally:
        for record in records.values():
            record.stop()
    print("\n".join(["", *write_summary(folder, rehearsal=settings.rehearsal)]))


def parsed() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="measure again what has been measured")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results" / "gpu")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # the process of one part
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(records: dict[Part, Record], settings: Settings, arguments: argparse.Namespace, end: float) -> None:
    """Every part for its time at most, by worth; then what is left of each, and what failed, for the time left."""
    print_plan(records, end - time.time())
    for turn in ("first", "second"):
        if turn == "second":
            for record in records.values():
                record.retry()
        for group in groups(records, settings):
            left = end - time.time()
            part = next(iter(group))
            if not missing(group):
                continue
            if left < part.least:
                print(f"{part.name}: skipped, {left:.0f} s are left and it needs {part.least} s at least", flush=True)
                continue
            run_parts(group, settings, arguments, min(end, time.time() + part.limit) if turn == "first" else end)


def groups(records: dict[Part, Record], settings: Settings) -> list[dict[Part, Record]]:
    """Parts that share a process: none, but in a rehearsal all that import torch, which takes most of its time."""
    if not settings.rehearsal:
        return [{part: record} for part, record in records.items()]
    apart = [{part: record} for part, record in records.items() if part.name == "marked_tests"]
    together = {part: record for part, record in records.items() if part.name != "marked_tests"}
    return [*apart, *([together] if together else [])]


def print_plan(records: dict[Part, Record], left: float) -> None:
    """What will be done, what each part should take, and where the time will be up."""
    print(f"{left:.0f} s for:")
    for part, record in records.items():
        measured, missing = record.tried, record.missing
        state = "has been measured" if missing == [] else f"{measured} units have been measured" if measured else ""
        turn = min(part.expected, part.limit)
        fits = "" if missing == [] or left >= part.least else "; no time will be left for it"
        left -= 0 if missing == [] else turn
        print(
            f"  {part.name}: {part.title}; about {part.expected} s, {part.limit} s at most before the next part"
            f"{f'; {state}' if state else ''}{fits}",
            flush=True,
        )


if __name__ == "__main__":
    main()
