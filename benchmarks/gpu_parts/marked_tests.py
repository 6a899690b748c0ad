"""Part 1: the tests marked `gpu`, every file in a process of its own and several at a time: nothing is timed here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gpu_parts.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "gpu"
LIMIT = 120
"""Seconds for one file."""
MARGIN = 10.0
"""Seconds before the unit's end at which files that still run are stopped, so that the others' results are kept."""
AT_ONCE = 6
TAIL = 6000
"""Characters of the output that are kept where a test failed."""


def units(settings: Settings) -> dict[str, tuple[()]]:
    """All files are one unit, because they run at the same time."""
    return {"all files": ()}


def measure(settings: Settings) -> dict[str, Any]:
    """By file: pytest's summary, whether it passed, and the end of its output where it did not."""
    files = sorted(FOLDER.glob("test_*.py"))
    at_once = 1 if settings.rehearsal else min(AT_ONCE, os.cpu_count() or 1)
    tested: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(_tested, group, settings) for group in _groups(files, settings)]):
            name, found = done.result()
            tested[name] = found
            settings.keep({"files": tested})
    return {"files": dict(sorted(tested.items()))}


def _groups(files: list[Path], settings: Settings) -> list[list[Path]]:
    """A process for each file; a rehearsal has one for all, because most of its time is spent on imports."""
    return [files] if settings.rehearsal else [[file] for file in files]


def _tested(files: list[Path], settings: Settings) -> tuple[str, dict[str, Any]]:
    chosen = ["-m", "gpu and not slow" if settings.rehearsal else "gpu"]
    # The project's own options need plugins that this machine may lack.
    plain = ["-o", "addopts=--import-mode=append", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *map(str, files), *chosen, *plain]
    environment = os.environ | {
        "BRANCHNET_GPU_TESTS": settings.device,
        "TORCHINDUCTOR_COMPILE_THREADS": "4",  # several files compile at the same time
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the tests need none of those that this machine happens to have
    }
    begun = time.perf_counter()
    limit = min(LIMIT, settings.until - MARGIN - time.time())
    name = files[0].name if len(files) == 1 else f"{len(files)} files"
    if limit <= 0:
        return name, {"passed": False, "summary": "no time was left for it", "took": 0.0, "output": ""}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"").decode(errors="replace") + f"\nstopped after {limit:.0f} s", -1
    lines = [line for line in output.splitlines() if line.strip()]
    summary = next(
        (line.strip("= ") for line in reversed(lines) if " in " in line and line.strip("= ")[:1].isdigit()), ""
    )
    kept = {} if code == 0 else {"output": output[-TAIL:]}
    found = {"passed": code == 0, "summary": summary or "".join(lines[-1:]), "took": time.perf_counter() - begun}
    return name, found | kept


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """A line for each file, and what failed."""
    lines = ["| file | | seconds |", "|---|---|---|"]
    for name, found in result["files"].items():
        verdict = found["summary"] if found["passed"] else f"**failed**: {found['summary']}"
        lines.append(f"| {name} | {verdict} | {found['took']:.0f} |")
    failed = {name: found for name, found in result["files"].items() if not found["passed"]}
    for name, found in failed.items():
        lines += ["", f"`{name}`:", "", "```", found["output"], "```"]
    met = "met" if not failed else "**missed**"
    return [*lines, "", f"- all tests marked gpu pass: {met}"]
