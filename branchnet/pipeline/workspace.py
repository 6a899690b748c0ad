"""A folder of results in which finished steps are found again: what makes a run resumable.

Each step leaves one file, and next to it a record of what it was made from and of the content that was written. A step
whose record matches is read back; where the file or the record is damaged or outdated, the step is made again. From the
first step on the folder is locked, so that two runs do not mix their results.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console

from branchnet.errors import BranchnetError, DataError
from branchnet.utils.files import atomic_write, remove_orphans, write_text
from branchnet.utils.version import __version__

T = TypeVar("T")

STEPS = ".steps"
RESULTS = "metrics.json"
"""The file that is in a folder of results when a run has come to its end."""
_LOCK = "lock"
_SOURCE = "source.json"
_HASHED_AT_ONCE = 2**20


class Workspace:
    """Results of a run in `directory`, which is made with the first of them; without one nothing is kept.

    Used as a context, it gives the folder free at the end; otherwise when the process ends.

    Attributes:
        directory: where the user finds the results, or None.
        reused: names of the steps that were read back.
        console: where messages go (stderr).
    """

    def __init__(self, directory: str | os.PathLike[str] | None, *, quiet: bool = False) -> None:
        self.directory = None if directory is None else checked_folder(Path(directory))
        self.reused: list[str] = []
        self.console = Console(stderr=True, quiet=quiet)
        self._lock: FileLock | None = None
        self._source: dict[str, str] = {}

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def step(
        self,
        name: str,
        inputs: Any,
        *,
        make: Callable[[Path | None], T],
        save: Callable[[T, Path], object],
        load: Callable[[Path], T],
    ) -> T:
        """Return the result of a step, read back where it was made from the same inputs.

        Args:
            name: the file that keeps the result.
            inputs: everything that decides the result, as JSON values.
            make: makes the result; it may keep an unfinished state in the file that it is given, if it is given one,
                and more of it in files next to it that have another word before the suffix.
            save: writes it to a path, atomically.
            load: reads it back.

        Returns:
            The result.

        Raises:
            DataError: another run is writing into the folder.
        """
        if self.directory is None:
            return make(None)
        self._take(self.directory)
        path = self.directory / STEPS / name
        record = path.with_name(path.name + ".json")
        key = _hash_of([__version__, name, inputs])
        if _certified(path, record, key):
            try:
                result = load(path)
            except BranchnetError as error:
                message = f"{name} cannot be read back and is made again: {error}"
                self.console.print(message, style="yellow", markup=False)
            else:
                self.reused.append(name)
                self.console.print(f"[dim]reused {name}[/dim]")
                return result
        state = f"{name}.{key[:12]}"
        unfinished = path.with_name(f"{state}.unfinished")
        for found in path.parent.glob(f"{name}.*.unfinished"):
            if not found.name.startswith(f"{state}."):
                found.unlink()
        result = make(unfinished)
        with atomic_write(path) as written:
            save(result, written)
            content = _content_hash(written)  # of what was written here, whoever else may write to `path`
        write_text(record, json.dumps([key, content]))
        unfinished.unlink(missing_ok=True)
        return result

    def claim(self, source: Mapping[str, Any]) -> None:
        """Say what the results will be of, before the first step: those of another source are not replaced.

        Args:
            source: what tells the run from others, as JSON values by what a message calls them.

        Raises:
            DataError: the folder holds the results of another run.
        """
        if self.directory is None:
            return
        self._source = {name: _hash_of(value) for name, value in source.items()}
        self._check_source(self.directory)

    def finished(self) -> None:
        """Say of whom the results are that are in the folder now."""
        if self.directory is not None and self._source:
            write_text(self.directory / STEPS / _SOURCE, json.dumps(self._source))

    def _check_source(self, directory: Path) -> None:
        found: Any = None
        with suppress(FileNotFoundError, DataError):  # no results yet, or none that say whose they are
            found = load_json(directory / STEPS / _SOURCE)
        if self._source and isinstance(found, dict) and (directory / RESULTS).exists():
            names = dict.fromkeys([*self._source, *found])
            if other := [name for name in names if found.get(name) != self._source.get(name)]:
                raise DataError(
                    f"{directory} holds the results of a run on other {' and other '.join(other)}; expected a folder "
                    "for each (name another one, or delete that one)"
                )

    def take(self) -> None:
        """Lock the folder before the first step; steps may then run in several threads."""
        if self.directory is not None:
            self._take(self.directory)

    def _take(self, directory: Path) -> None:
        """Lock the folder, once, and remove what killed runs have left in it."""
        if self._lock is not None:
            return
        (directory / STEPS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / STEPS / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(
                f"another run is writing into {directory}; expected one at a time: wait for its end, or name another "
                "folder"
            ) from error
        self._lock = lock
        self._check_source(directory)  # again: another run may have ended meanwhile
        for folder in (directory, directory / STEPS):
            remove_orphans(folder)


def checked_folder(directory: Path) -> Path:
    """`directory`, which need not exist.

    Args:
        directory: where results shall go.

    Returns:
        The same path.

    Raises:
        DataError: it is a file, or lies in one.
    """
    taken = next((path for path in (directory, *directory.parents) if path.exists()), None)
    if taken is not None and not taken.is_dir():
        raise DataError(f"results go into a folder; {directory} is or lies in a file; expected a folder or a new path")
    return directory


def save_json(value: Any, path: Path) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        The value.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file, or it is damaged: {error}") from error


def _certified(path: Path, record: Path, key: str) -> bool:
    """Whether the record says that the file was made from these inputs, with the content that it has."""
    try:
        return bool(load_json(record) == [key, _content_hash(path)])
    except (FileNotFoundError, DataError):
        return False


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_HASHED_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()
