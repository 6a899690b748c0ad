"""One mutant on trial: applied in a temporary copy, against the tests of its room, the nearest ones first.

Each run of tests is a fork of this process, in which what they import from elsewhere is loaded once.
"""

from __future__ import annotations

import ast
import importlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from mutants import Mutant

KILLED, SURVIVED, LIMIT = "killed", "survived", "killed by the limit"
MOST_BYTES = 8 * 2**30
_PRELOADED = ("hypothesis", "networkx", "numpy", "pytest", "scipy.optimize", "sklearn.cluster", "torch")


def nearest_tests(root: Path, mutant: Mutant) -> list[str]:
    """The tests of the mutant's room that import the mutated file, those with the fewest imports between them first,
    and of these the ones that use the fewest names.

    Names stand for modules, so a file may be listed that shares a name only; none that imports the file is left out.
    """
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
    defined = [(distance, _names_defined(root, path)) for path, distance in distances.items()]
    found = []
    for path, used in tests.items():
        if near := [distance for distance, names in defined if used & names]:
            found.append((min(near), len(used), str(path.relative_to(root))))
    return [path for *_, path in sorted(found)]


def _names_defined(root: Path, path: Path) -> set[str]:
    """The module's dotted name, and its public functions, classes and constants."""
    dotted = ".".join(path.relative_to(root).with_suffix("").parts)
    tree = ast.parse(path.read_bytes())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {
        t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    }
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
    """A temporary folder with the files that git tracks or would add."""
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

    load()
    with tempfile.TemporaryFile("w+") as output:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(_run_pytest(copy, tests, seconds, output.fileno()))
        stop = threading.Timer(10 * seconds if seconds else threading.TIMEOUT_MAX, _kill, [child])
        stop.daemon = True
        stop.start()
        _, status, used = os.wait4(child, 0)
        stop.cancel()
        output.seek(0)
        lines = output.read().splitlines()
    failed = [line.split(" ")[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return Outcome(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, (failed or lines[-1:] or [""])[0])


def load() -> None:
    """Import what tests need from elsewhere, with one thread for each library."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    for name in _PRELOADED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _run_pytest(copy: Path, tests: Sequence[str], seconds: float | None, output: int) -> int:
    """In the child: pytest's exit status."""
    import hypothesis
    import pytest

    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1, closefd=False)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("branchnet", "tests", "conftest")]:
        del sys.modules[name]
    found = find_spec("branchnet")
    if found is None or not Path(str(found.origin)).resolve().is_relative_to(copy.resolve()):
        os.write(output, f"the tests would import {found}, expected a file below {copy}".encode())
        return pytest.ExitCode.INTERNAL_ERROR
    hypothesis.settings.register_profile(
        "mutation",
        database=None,
        derandomize=True,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutation")
    alone = ["-o", "addopts=-m 'not slow'"]  # in this process, whose libraries are loaded
    return pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *alone, *tests])


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
        "result": result, "seconds": round(outcome.seconds, 1), "by": outcome.failure if outcome.status else "",
    }  # fmt: skip


def baseline(copy: Path, room: str) -> float:
    """Processor seconds of a room's tests without a mutant.

    Raises:
        SystemExit: the tests fail, or do not import the copy.
    """
    outcome = run_tests(copy, [f"tests/{room}"])
    if outcome.status != 0:
        raise SystemExit(f"the tests of {room} fail without a mutant: {outcome.failure or outcome.status}")
    return outcome.seconds
