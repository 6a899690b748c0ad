"""Results on disk, written as they come: for each part a JSON file of its units, and while it runs one of its state."""

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
"""Stands for the unit where a process ended, or a part could not be imported, while no unit was being measured."""


@dataclass(frozen=True)
class Record:
    """The results of one part.

    A unit is one comparison. The file of results says what each of them gave, or with what traceback it failed; it is
    written when a unit has ended and never before. Beside it, while the command runs, lies its state: which units were
    tried, which one is being measured, and what that one has measured so far.

    Attributes:
        path: the file of results.
        identity: settings, code and machine; results of others are not gone on with.
    """

    path: Path
    identity: dict[str, Any]

    def read(self) -> dict[str, Any]:
        """What the file says; nothing measured where it is of another identity."""
        found = self._stored()
        return found if found and found["identity"] == self.identity else self._empty()

    def state(self) -> dict[str, Any]:
        """What this command has done so far."""
        if not self._state_path.exists():
            return {"planned": None, "tried": [], "running": None, "partial": None}
        found: dict[str, Any] = json.loads(self._state_path.read_text(encoding="utf-8"))
        return found

    def start(self, *, again: bool) -> None:
        """Begin a command: what failed is to be tried, and with `again` what has a result, which stays until then."""
        self.stop()
        content = self.read()
        succeeded = [unit for unit, outcome in content["units"].items() if "result" in outcome]
        self._update(planned=content["planned"] or None, tried=[] if again else succeeded)

    def stop(self) -> None:
        """End a command."""
        self._state_path.unlink(missing_ok=True)

    def plan(self, units: list[str]) -> None:
        """Say which units there are."""
        self._update(planned=units)

    def begin(self, unit: str) -> None:
        """Say that this unit is being measured."""
        self._update(running=unit, partial=None)

    def keep(self, partial: dict[str, Any]) -> None:
        """Say what the unit that is being measured has given so far."""
        self._update(partial=partial)

    def finish(self, unit: str, outcome: dict[str, Any]) -> None:
        """Keep what a unit gave: its result, or a traceback under `error` and what it had measured until then.

        A result that is there already outlives a later failure.
        """
        self._set_aside_others()
        content, state = self.read(), self.state()
        earlier = content["units"].get(unit, {})
        if "error" in outcome and "result" in earlier:
            outcome = earlier | {"later error": outcome["error"]}
        elif "error" in outcome and state["partial"]:
            outcome = outcome | {"partial": state["partial"]}
        content["units"].pop(STARTING, None)
        content["units"][unit] = outcome
        planned = state["planned"] or content["planned"]
        write_text(self.path, json.dumps(content | {"planned": planned}, indent=1) + "\n")
        self._update(tried=[*state["tried"], unit], running=None, partial=None)

    def fail_to_start(self, reason: str) -> None:
        """Say why no unit could be begun."""
        self.finish(STARTING, {"error": reason})

    def blame(self, reason: str) -> bool:
        """Give the reason why a process ended to the unit that was being measured, or to the start of the process.

        Returns:
            whether anything was left to measure.
        """
        unit = self.state()["running"] or (STARTING if self.missing != [] else None)
        if unit:
            self.finish(unit, {"error": reason})
        return unit is not None

    def retry(self) -> None:
        """Let what failed in this command be tried once more."""
        units = self.read()["units"]
        kept = [u for u in self.state()["tried"] if "result" in units.get(u, {}) and "later error" not in units[u]]
        self._update(tried=kept)

    @property
    def tried(self) -> int:
        """How many units have been tried."""
        return len(self.state()["tried"])

    @property
    def missing(self) -> list[str] | None:
        """Planned units that are still to be tried, those that failed last; None where nothing has been planned yet."""
        state = self.state()
        if STARTING in state["tried"]:
            return []
        if state["planned"] is None:
            return None
        units = self.read()["units"]
        left = [unit for unit in state["planned"] if unit not in state["tried"]]
        return sorted(left, key=lambda unit: "error" in units.get(unit, {}))

    @property
    def _state_path(self) -> Path:
        return self.path.with_suffix(".state.json")

    def _update(self, **changes: Any) -> None:
        write_text(self._state_path, json.dumps(self.state() | changes) + "\n")

    def _stored(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else None

    def _empty(self) -> dict[str, Any]:
        return {"identity": self.identity, "planned": [], "units": {}}

    def _set_aside_others(self) -> None:
        """Rename results of another identity before the first of this one are written."""
        found = self._stored()
        if not found or found["identity"] == self.identity:
            return
        if any("result" in outcome for outcome in found["units"].values()):
            for path in (self.path, self.path.with_suffix(".md")):
                if path.exists():
                    path.replace(path.with_suffix(f".earlier{path.suffix}"))


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
