"""Runs that several processes work off together, on one machine or many: one file for each, in a folder they share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from branchnet.errors import DataError
from branchnet.utils.files import remove_orphans, write_text
from branchnet.utils.progress import progress_bar

RUNS = "runs"
MANIFEST = "study.json"
SECONDS_BETWEEN_LOOKS = 1.0
"""While other processes do the last runs."""


def finish_runs(
    folder: Path,
    manifest: Mapping[str, Any],
    runs: Mapping[str, Callable[[], Mapping[str, Any]]],
    *,
    progress: bool = True,
    description: str = "study",
) -> dict[str, dict[str, Any]]:
    """Do every run that has no file yet and that no other process is doing; wait for those.

    A run is locked while it lasts; the lock goes with its process, so a killed process's run is done again by the next
    that looks. Files are written whole or not at all.

    Args:
        folder: of the study; made where it is missing.
        manifest: what the study is, which all processes must agree on.
        runs: by name what does them, in order.
        progress: whether to draw a progress bar on stderr.
        description: what it is called.

    Returns:
        the result of every run by name, in the order of `runs`.

    Raises:
        DataError: the folder holds another study (what differs is named), or a damaged file.
    """
    (folder / RUNS).mkdir(parents=True, exist_ok=True)
    _agree(folder, manifest)
    done = {name: found for name in runs if (found := _read(folder, name)) is not None}
    with progress_bar(description, len(runs), shown=progress, done=len(done)) as advance:
        while len(done) < len(runs):
            before = len(done)
            for name, run in runs.items():
                if name in done:
                    continue
                with _claimed(folder, name) as free:
                    found = _read(folder, name)
                    if found is None and free:
                        found = dict(run())
                        write_text(_file(folder, name), json.dumps(found) + "\n")
                if found is not None:
                    done[name] = found
                    advance(name)
            if len(done) == before:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    return {name: done[name] for name in runs}


def _file(folder: Path, name: str) -> Path:
    return folder / RUNS / f"{name}.json"


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    file = _file(folder, name)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{file} is damaged ({error}); expected a run's result: remove it to do the run again"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds a {type(found).__name__}; expected a run's result: remove it to do it again")
    return found


@contextmanager
def _claimed(folder: Path, name: str) -> Iterator[bool]:
    """Hold a run's lock; False where another process holds it."""
    lock = FileLock(folder / RUNS / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _agree(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what the study is, or compare it with what another process wrote."""
    wanted = json.loads(json.dumps(manifest))
    file = folder / MANIFEST
    with FileLock(folder / f"{MANIFEST}.lock"):
        if not file.exists():
            remove_orphans(folder)
            write_text(file, json.dumps(wanted, indent=1) + "\n")
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}); expected a study's description") from None
    keys: Sequence[str] = sorted({*wanted, *found}) if isinstance(found, dict) else ["everything"]
    if differing := [key for key in keys if not isinstance(found, dict) or found.get(key) != wanted.get(key)]:
        raise DataError(
            f"{folder} holds another study, other in {', '.join(differing)}; expected the same call, or a new folder"
        )
