"""Parts in processes of their own: what crashes or hangs there is recorded, and the rest goes on."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gpu_parts.pages import write_page
from gpu_parts.plan import Part
from gpu_parts.records import Record
from gpu_parts.settings import Settings

GRACE = 5.0
"""Seconds that a process gets beyond its time before it is killed with everything that it started."""
TAIL = 4000
"""Characters of its output that are kept of a process that ended in the middle of a unit."""


def run_parts(records: Mapping[Part, Record], settings: Settings, arguments: argparse.Namespace, until: float) -> None:
    """Measure the missing units of some parts, in one process, until the time is up; after a failure in a new one."""
    print(f"\n== {', '.join(part.name for part in records)} ({until - time.time():.0f} s at most)", flush=True)
    log = next(iter(records.values())).path.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    least = min(part.least for part in records)
    progress = True
    while progress and missing(records) and time.time() + least < until:
        before = tried(records)
        log.unlink(missing_ok=True)
        ended = _run(list(records), arguments, until, log)
        text = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        if ended:
            blame(records, settings, f"{ended}\n{text}")
        progress = tried(records) > before
    log.unlink(missing_ok=True)


def missing(records: Mapping[Part, Record]) -> bool:
    """Whether something is still to be measured."""
    return any(record.missing != [] for record in records.values())


def tried(records: Mapping[Part, Record]) -> int:
    """How many units have been tried."""
    return sum(record.tried for record in records.values())


def blame(records: Mapping[Part, Record], settings: Settings, reason: str) -> None:
    """Give the reason why the process ended to the unit that was being measured; if none was, to each part's start."""
    running = {part: record for part, record in records.items() if record.state()["running"]}
    for part, record in (running or records).items():
        if record.blame(reason):
            write_page(part, record, settings)


def _run(parts: list[Part], arguments: argparse.Namespace, until: float, log: Path) -> str | None:
    """Run one process to its end, show what it prints, and say how it ended, None if well."""
    command = [sys.executable, "-u", str(Path(sys.argv[0]).resolve()), "--measure"]
    command += ["--parts", *(part.name for part in parts), "--device", arguments.device]
    command += ["--until", str(until), "--results", str(arguments.results)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            shown = _show_while_running(process, log, until + GRACE)
        finally:
            running = process.poll() is None
            with suppress(ProcessLookupError):  # what it started, such as compilers, may have outlived it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _show(log, shown)
    if running:
        return "ran past its time and was killed"
    return f"the process ended with {process.returncode}" if process.returncode else None


def _show_while_running(process: subprocess.Popen[bytes], log: Path, end: float) -> int:
    shown = log.stat().st_size
    while process.poll() is None and time.time() < end:
        shown = _show(log, shown)
        time.sleep(0.2)
    return shown


def _show(log: Path, start: int) -> int:
    """Print what was logged from `start` on; give its end."""
    with log.open("rb") as written:
        written.seek(start)
        text = written.read()
    print(text.decode(errors="replace"), end="", flush=True)
    return start + len(text)
