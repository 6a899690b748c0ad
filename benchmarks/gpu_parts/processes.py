"""Parts in processes of their own: what crashes or hangs there is recorded, and the rest goes on."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts.plan import Part
from gpu_parts.records import Record

GRACE = 5.0
"""Seconds that a process gets beyond its time before it is killed with everything that it started."""
TAIL = 4000
"""Characters of its output that are kept of a process that ended in the middle of a unit."""


def run_part(part: Part, record: Record, arguments: argparse.Namespace, until: float) -> None:
    """Measure a part's missing units until its time is up; after a failure in a new process."""
    print(f"\n== {part.name} ({until - time.time():.0f} s at most)", flush=True)
    log = record.path.with_suffix(".log")
    log.unlink(missing_ok=True)
    attempted = -1
    while record.missing != [] and time.time() + part.least < until and attempted != len(record.read()["units"]):
        attempted = len(record.read()["units"])
        ended = _run(part, arguments, until, log)
        record.blame(f"{ended}\n{log.read_text(encoding='utf-8', errors='replace')[-TAIL:]}")
        if record.missing is None:  # it ended before it had planned anything
            record.finish("start of the process", {"error": f"{ended}\n{log.read_text(errors='replace')[-TAIL:]}"})
            print(log.read_text(errors="replace")[-TAIL:], flush=True)


def _run(part: Part, arguments: argparse.Namespace, until: float, log: Path) -> str:
    """Run one process to its end, show what it prints, and say how it ended."""
    command = [sys.executable, "-u", str(Path(sys.argv[0]).resolve()), "--measure", "--parts", part.name]
    command += ["--device", arguments.device, "--until", str(until), "--results", str(arguments.results)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            shown = _show_while_running(process, log, until + GRACE)
        finally:
            if running := process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _show(log, shown)
    return "ran past the part's time and was killed" if running else f"the process ended with {process.returncode}"


def _show_while_running(process: subprocess.Popen[bytes], log: Path, end: float) -> int:
    shown = log.stat().st_size
    while process.poll() is None and time.time() < end:
        shown = _show(log, shown)
        time.sleep(0.2)
    return shown


def _show(log: Path, start: int) -> int:
    """Print what was logged from `start` on."""
    with log.open("rb") as written:
        written.seek(start)
        text = written.read()
    print(text.decode(errors="replace"), end="", flush=True)
    return start + len(text)
