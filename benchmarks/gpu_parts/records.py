"""Results on disk, written as they come: for each part a JSON file of its units."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchnet.utils.files import write_text
from gpu_parts.plan import PARTS

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
SHARED = ("inference.py", "inference_sides.py", "inference_page.py")
"""Files next to `gpu.py` that parts measure with."""
STARTING = "start of the process"
"""Stands for the unit where a process ended before it had said which units there are."""


@dataclass(frozen=True)
class Record:
    """The results of one part.

    A unit is one comparison. The file says what each of them gave, which failed and with what traceback, and which one
    is being measured: when a process ends in the middle, it says so what ended it.

    Attributes:
        path: the file.
        identity: settings, code and machine; results of others are not gone on with.
    """

    path: Path
    identity: dict[str, Any]

    def read(self) -> dict[str, Any]:
        """What the file says; nothing measured where it is of another identity."""
        empty = {"identity": self.identity, "planned": [], "units": {}, "running": None}
        if not self.path.exists():
            return empty
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found if found["identity"] == self.identity else empty

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file."""
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def plan(self, units: list[str]) -> None:
        """Say which units there are."""
        self.write(self.read() | {"planned": units})

    def begin(self, unit: str) -> None:
        """Say that this unit is being measured."""
        self.write(self.read() | {"running": unit})

    def finish(self, unit: str, outcome: dict[str, Any]) -> None:
        """Keep what a unit gave: its result, or a traceback under `error`."""
        content = self.read()
        content["units"][unit] = outcome
        self.write(content | {"running": None})

    def blame(self, reason: str) -> bool:
        """Give the reason to the unit that was being measured when its process ended; say whether there was one."""
        content = self.read()
        unit = content["running"] if content["planned"] else STARTING
        if unit:
            self.finish(unit, {"error": reason})
        return unit is not None

    def forget(self, *, failed_only: bool) -> None:
        """Let units be measured again."""
        content = self.read()
        kept = {unit: one for unit, one in content["units"].items() if failed_only and "error" not in one}
        self.write(content | {"units": kept, "running": None})

    @property
    def missing(self) -> list[str] | None:
        """Planned units that have not been measured; None where nothing has been planned yet."""
        content = self.read()
        return [unit for unit in content["planned"] if unit not in content["units"]] if content["planned"] else None


def code_of(part: str) -> str:
    """Hash of the code that a part runs: the package, what all parts share, and the part's own module."""
    others = {one.name for one in PARTS} - {part}
    files = [path for path in Path(__file__).parent.glob("*.py") if path.stem not in others]
    files += [*(ROOT / "branchnet").rglob("*.py"), *(BENCHMARKS / name for name in SHARED)]
    if part == "marked_tests":
        files += (ROOT / "tests" / "gpu").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
