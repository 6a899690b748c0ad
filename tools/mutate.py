"""Mutation run: how many seeded small changes of rooms of branchnet make the room's own tests fail.

Each mutant is applied in a temporary copy of the files that git knows, and the room's tests run until the first
failure: those first that are nearest by imports to the mutated file. A mutant that takes more than three times
the processor time of all tests (and 20 seconds), or too much memory, counts as killed. Every result is added to a file
at once, and what that file holds is not run again. Works where Python's `resource` module does (Linux, macOS).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml
from mutants import Mutant, mutants_of, ranked
from mutation_trials import KILLED, LIMIT, SURVIVED, baseline, copy_of, nearest_tests, run_mutant

ROOT = Path(__file__).resolve().parents[1]
Key = tuple[str, str, str, int]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")


@dataclass(frozen=True)
class Equivalent:
    """A change that no test can notice, and why; `occurrence` counts equal changes of equal lines from 0."""

    file: str
    text: str
    change: str
    reason: str
    occurrence: int = 0


def mutants_of_rooms(root: Path, rooms: Iterable[str]) -> list[Mutant]:
    """All mutants of the rooms' files, subfolders included."""
    files = [path for room in rooms for path in sorted((root / "branchnet" / room).rglob("*.py"))]
    if not files:
        raise SystemExit(f"no Python files in {', '.join(rooms)} below {root / 'branchnet'}")
    return [mutant for path in files for mutant in mutants_of(path.relative_to(root).as_posix(), path.read_bytes())]


def read_equivalents(path: Path, mutants: Sequence[Mutant]) -> dict[Key, str]:
    """Reasons by the mutant's key, for the rooms of these mutants.

    Raises:
        SystemExit: an entry that names no mutant (any more).
    """
    entries = [Equivalent(**entry) for entry in yaml.safe_load(path.read_text()) or []] if path.exists() else []
    keys, rooms = {mutant.key for mutant in mutants}, {mutant.room for mutant in mutants}
    reasons = {
        (entry.file, entry.text, entry.change, entry.occurrence): entry.reason
        for entry in entries
        if entry.file.split("/")[1] in rooms
    }
    for key in reasons.keys() - keys:
        raise SystemExit(f"{path.name}: no such mutant, expected a line and a change of the source: {key}")
    return reasons


def read_results(path: Path) -> dict[Key, dict[str, object]]:
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
        limits = {room: 3 * baseline(copy, room) + 20 for room in sorted({m.room for m in left})}
        for number, mutant in enumerate(left, 1):
            result = run_mutant(copy, mutant, nearest_tests(copy, mutant), limits[mutant.room])
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number}/{len(left)} {result['result']} in {result['seconds']} s: {mutant.file}:{mutant.line} "
                f"{mutant.change}",
                flush=True,
            )


def table(mutants: Sequence[Mutant], results: Mapping[Key, Mapping[str, object]]) -> list[str]:
    """Markdown lines: a row for each room and one for all, of mutants that are not equivalent."""
    lines = [
        "| room | mutants | killed | of these by the limit | survived | share killed |",
        "|---|---|---|---|---|---|",
    ]
    rooms = sorted({mutant.room for mutant in mutants})
    for name, chosen in [*((room, [room]) for room in rooms), ("all", rooms)]:
        counts = Counter(str(results[m.key]["result"]) for m in mutants if m.room in chosen)
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
    results: Mapping[Key, Mapping[str, object]],
    seed: int,
) -> str:
    """The page: the table, then survivors and equivalent mutants one by one."""
    seconds = sum(float(str(results[mutant.key]["seconds"])) for mutant in mutants)
    survivors = [(mutant, "") for mutant in mutants if results[mutant.key]["result"] == SURVIVED]
    lines = [
        "# Mutation run",
        "",
        f"`tools/mutate.py`, seed {seed}: {len(mutants)} mutants in {seconds:,.0f} processor seconds; "
        f"{len(equivalent)} more of the same sample are equivalent. A result of an earlier run is kept as long as the",
        "mutated line is the same.",
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
    reasons = read_equivalents(equivalents, everything)
    order = ranked(everything, options.seed)
    mutants = list(islice((m for m in order if m.key not in reasons), options.count))
    until = order.index(mutants[-1])
    run_missing(root, mutants, options.results, options.again)
    results = read_results(options.results)
    equivalent = [(m, reasons[m.key]) for m in order[:until] if m.key in reasons]
    page = report(mutants, equivalent, results, options.seed)
    print(page)
    if options.page is not None:
        options.page.write_text(page)
    killed = sum(results[mutant.key]["result"] != SURVIVED for mutant in mutants)
    return 0 if killed >= options.at_least * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
