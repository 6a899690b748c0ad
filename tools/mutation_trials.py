"""One mutant on trial: applied in a temporary copy, against the tests of its room, the nearest ones first."""

from __future__ import annotations

import ast
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from mutants import Mutant

KILLED, SURVIVED, LIMIT = "killed", "survived", "killed by the limit"
MOST_BYTES = 8 * 2**30
_PROFILE = """
from hypothesis import Phase, settings
settings.register_profile("mutation", database=None, derandomize=True, deadline=None,
                          phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutation")
"""


def nearest_tests(root: Path, mutant: Mutant) -> list[str]:
    """The test files of the mutant's room, ordered by the number of imports that lead to the mutated file."""
    package = root / Path(*Path(mutant.file).parts[:2])
    uses = {path: _names_used(path) for path in sorted(package.rglob("*.py"))}
    distances = {root / mutant.file: 1}
    frontier = [root / mutant.file]
    while frontier:
        names = {name for path in frontier for name in _names_defined(root, path)}
        distance = distances[frontier[0]] + 1
        frontier = [path for path, used in uses.items() if path not in distances and used & names]
        distances.update(dict.fromkeys(frontier, distance))
    tests = {path: _names_used(path) for path in sorted((root / "tests" / mutant.room).rglob("test_*.py"))}
    defined = sorted((distance, _names_defined(root, path)) for path, distance in distances.items())

    def distance_of(used: set[str]) -> float:
        return next((distance for distance, names in defined if used & names), math.inf)

    return [str(p.relative_to(root)) for p in sorted(tests, key=lambda path: distance_of(tests[path]))]


def _names_defined(root: Path, path: Path) -> set[str]:
    """The module's dotted name, and its public functions and classes."""
    dotted = ".".join(path.relative_to(root).with_suffix("").parts)
    tree = ast.parse(path.read_bytes())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {dotted, *(name for name in found if not name.startswith("_"))}


def _names_used(path: Path) -> set[str]:
    """Modules and names that a file imports, and attributes that it reads."""
    used = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            used |= {str(node.module), *(alias.name for alias in node.names)}
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
    return used


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A temporary folder with the files that git tracks or would add, and the profile for hypothesis."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (root / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, target)
        Path(folder, "mutation_profile.py").write_text(_PROFILE)
        yield Path(folder)


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: pytest's exit status (negative: a signal), processor seconds, the first failure."""

    status: int
    seconds: float
    failure: str


def run_tests(copy: Path, tests: Sequence[str], seconds: float | None = None) -> Outcome:
    """Run the test files in this order until one fails.

    Args:
        copy: the folder to run in.
        tests: files or folders of tests.
        seconds: processor time after which the run is stopped; it is stopped after ten times as much time, too.
    """

    def limit() -> None:
        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "mutation_profile",
    ]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            [*command, *tests], cwd=copy, env=environment, preexec_fn=limit, capture_output=True, text=True,
            timeout=None if seconds is None else 10 * seconds,
        )  # fmt: skip
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = -1, ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    failed = [line.split(" ")[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(status, spent, failed[0] if failed else "")


def run_mutant(copy: Path, mutant: Mutant, tests: Sequence[str], seconds: float) -> dict[str, object]:
    """Apply a mutant in the copy, run the tests, and take it back; the result as it is recorded."""
    path = copy / mutant.file
    source, cached = path.read_bytes(), Path(cache_from_source(str(path)))
    try:
        path.write_bytes(mutant.apply(source))
        cached.unlink(missing_ok=True)  # a change within one second that keeps the size would not be seen
        outcome = run_tests(copy, tests, seconds)
    finally:
        path.write_bytes(source)
        cached.unlink(missing_ok=True)
    result = SURVIVED if outcome.status == 0 else LIMIT if outcome.status < 0 else KILLED
    file, text, change, occurrence = mutant.key
    return {
        "file": file, "text": text, "change": change, "occurrence": occurrence, "line": mutant.line,
        "result": result, "seconds": round(outcome.seconds, 1), "by": outcome.failure,
    }  # fmt: skip


def baseline(copy: Path, room: str) -> float:
    """Processor seconds of a room's tests without a mutant.

    Raises:
        SystemExit: the tests fail, or do not import the copy.
    """
    where = subprocess.run(
        [sys.executable, "-c", "import branchnet; print(branchnet.__file__)"],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if not Path(where.stdout.strip()).resolve().is_relative_to(copy.resolve()):
        raise SystemExit(f"the copy's tests would import {where.stdout.strip()}, expected a file below {copy}")
    outcome = run_tests(copy, [f"tests/{room}"])
    if outcome.status != 0:
        raise SystemExit(f"the tests of {room} fail without a mutant: {outcome.failure or outcome.status}")
    return outcome.seconds
