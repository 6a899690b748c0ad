"""Mutation run: how many seeded small changes of rooms of branchnet make the room's own tests fail.

Each mutant is applied in a temporary copy of the files that git knows, and the room's tests run until the first failure:
first the files nearest by imports to the mutated one, then the rest. A mutant that takes more than three times the
processor time of all tests (and 20 seconds), or too much memory, counts as killed. Every result is added to a file at
once, and what that file holds isn't run again. Works where the `resource` module does (Linux, macOS).
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import cache_from_source
from itertools import islice
from pathlib import Path

import yaml
from mutants import Mutant, mutants_of, ranked

from branchnet.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
MOST_BYTES = 8 * 2**30
KILLED, SURVIVED, LIMIT = "killed", "survived", "killed by the limit"
_PROFILE = """
from hypothesis import Phase, settings
settings.register_profile("mutation", database=None, derandomize=True, deadline=None,
                          phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutation")
"""


@dataclass(frozen=True)
class Equivalent:
    """A change that no test can notice: which (all occurrences in that file), and why."""

    file: str
    text: str
    change: str
    reason: str


def mutants_of_rooms(root: Path, rooms: Iterable[str]) -> list[Mutant]:
    """All mutants of the rooms' files, subfolders included."""
    files = [path for room in rooms for path in sorted((root / "branchnet" / room).rglob("*.py"))]
    if not files:
        raise SystemExit(f"no Python files in {', '.join(rooms)} below {root / 'branchnet'}")
    return [mutant for path in files for mutant in mutants_of(path.relative_to(root).as_posix(), path.read_bytes())]


def read_equivalents(path: Path, mutants: Iterable[Mutant]) -> dict[tuple[str, str, str], str]:
    """Reasons by file, line and change.

    Raises:
        SystemExit: an entry that names no mutant (any more).
    """
    entries = [Equivalent(**entry) for entry in yaml.safe_load(path.read_text()) or []] if path.exists() else []
    known = {mutant.key[:3] for mutant in mutants}
    for entry in entries:
        if (entry.file, entry.text, entry.change) not in known:
            raise SystemExit(f"{path.name}: no such mutant, expected a line and a change of the source: {entry}")
    return {(entry.file, entry.text, entry.change): entry.reason for entry in entries}


def nearest_tests(root: Path, mutant: Mutant) -> list[str]:
    """The test files of the mutant's room, ordered by the number of imports that lead to the mutated file."""
    room = Path(*Path(mutant.file).parts[:2])
    uses = {path: _names_used(path) for path in sorted((root / room).rglob("*.py"))}
    distances = {root / mutant.file: 1}
    frontier = [root / mutant.file]
    while frontier:
        names = {name for path in frontier for name in _names_defined(root, path)}
        distance = distances[frontier[0]] + 1
        frontier = [path for path, used in uses.items() if path not in distances and used & names]
        distances.update(dict.fromkeys(frontier, distance))
    tests = {path: _names_used(path) for path in sorted((root / "tests" / room.name).rglob("test_*.py"))}
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
    """Run the test files in this order until one fails, in at most so much processor time and ten times as much time."""

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


def read_results(path: Path) -> dict[tuple[str, str, str, int], dict[str, object]]:
    """Recorded results by the mutant's key; a later line replaces an earlier one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["file"], line["text"], line["change"], line["occurrence"]): line for line in lines}


def run_missing(root: Path, mutants: Sequence[Mutant], results: Path, again: bool) -> None:
    """Run the mutants that have no result yet, or (again) that survived."""
    known = read_results(results)
    left = [m for m in mutants if m.key not in known or (again and known[m.key]["result"] == SURVIVED)]
    if not left:
        return
    with copy_of(root) as copy:
        limits = {room: 3 * baseline(copy, room) + 20 for room in sorted({m.file.split("/")[1] for m in left})}
        for number, mutant in enumerate(left, 1):
            result = run_mutant(copy, mutant, nearest_tests(copy, mutant), limits[mutant.file.split("/")[1]])
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number}/{len(left)} {result['result']} in {result['seconds']} s: {mutant.file}:{mutant.line} "
                f"{mutant.change}",
                flush=True,
            )


def table(mutants: Sequence[Mutant], results: Mapping[tuple[str, str, str, int], Mapping[str, object]]) -> list[str]:
    """Markdown lines: a row for each room and one for all, of mutants that are not equivalent."""
    lines = [
        "| room | mutants | killed | of these by the limit | survived | share killed |",
        "|---|---|---|---|---|---|",
    ]
    rooms = sorted({mutant.file.split("/")[1] for mutant in mutants})
    for name, chosen in [*((room, [room]) for room in rooms), ("all", rooms)]:
        counts = Counter(str(results[m.key]["result"]) for m in mutants if m.file.split("/")[1] in chosen)
        killed, number = counts[KILLED] + counts[LIMIT], sum(counts.values())
        share = f"{killed / number:.0%}"
        lines.append(f"| {name} | {number} | {killed} | {counts[LIMIT]} | {counts[SURVIVED]} | {share} |")
    return lines


def listing(title: str, mutants: Sequence[tuple[Mutant, str]]) -> list[str]:
    """Markdown lines: file, line, change and a remark for each mutant."""
    lines = ["", f"## {title}", ""]
    for mutant, remark in mutants:
        lines.append(f"- `{mutant.file}`, {mutant.change}: `{mutant.text}`{remark and f': {remark}'}")
    return lines if mutants else []


def report(
    mutants: Sequence[Mutant],
    equivalent: Sequence[tuple[Mutant, str]],
    results: Mapping[tuple[str, str, str, int], Mapping[str, object]],
    seed: int,
) -> str:
    """The page: the table, then survivors and equivalent mutants one by one."""
    seconds = sum(float(str(results[mutant.key]["seconds"])) for mutant in mutants)
    survivors = [(mutant, "") for mutant in mutants if results[mutant.key]["result"] == SURVIVED]
    lines = [
        "# Mutation run",
        "",
        f"`tools/mutate.py`, seed {seed}: {len(mutants)} mutants in {seconds:,.0f} processor seconds; "
        f"{len(equivalent)} more of the same sample are equivalent.",
        "",
        *table(mutants, results),
        *listing("Survivors", survivors),
        *listing("Equivalent", equivalent),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT, equivalents: Path = EQUIVALENT) -> int:
    """Run what is missing and print the table; 1 where fewer are killed than asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", default=["clustering", "training"], help="folders of branchnet/")
    parser.add_argument("--count", type=int, default=100, help="mutants that are not equivalent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("mutation.jsonl"), help="one line for each mutant")
    parser.add_argument("--again", action="store_true", help="run recorded survivors again")
    parser.add_argument("--page", type=Path, help="write the table and the survivors to this file, too")
    parser.add_argument("--at-least", type=float, default=0.85, help="share that must be killed")
    options = parser.parse_args(arguments)
    everything = mutants_of_rooms(root, options.rooms)
    reasons = read_equivalents(equivalents, everything) if set(options.rooms) else {}
    order = ranked(everything, options.seed)
    mutants = list(islice((m for m in order if m.key[:3] not in reasons), options.count))
    until = order.index(mutants[-1])
    run_missing(root, mutants, options.results, options.again)
    results = read_results(options.results)
    equivalent = [(m, reasons[m.key[:3]]) for m in order[:until] if m.key[:3] in reasons]
    page = report(mutants, equivalent, results, options.seed)
    print(page)
    if options.page is not None:
        write_text(options.page, page)
    killed = sum(results[mutant.key]["result"] != SURVIVED for mutant in mutants)
    return 0 if killed >= options.at_least * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
