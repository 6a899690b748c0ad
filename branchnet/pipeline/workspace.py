"""A folder of results in which finished steps are found again: what makes a run resumable.

Each step leaves one file, and next to it a record of what it was made from and of the file's content. A step whose
record matches is read back; where the file is damaged or outdated, the step is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from branchnet.errors import DataError
from branchnet.utils.files import write_text
from branchnet.utils.version import __version__

T = TypeVar("T")

STEPS = ".steps"


class Workspace:
    """Results of a run in `directory`, which is made with the first of them; without one nothing is kept.

    Attributes:
        directory: where the user finds the results, or None.
        reused: names of the steps that were read back.
        console: where messages go (stderr).
    """

    def __init__(self, directory: str | os.PathLike[str] | None, *, quiet: bool = False) -> None:
        self.directory = None if directory is None else checked_folder(Path(directory))
        self.reused: list[str] = []
        self.console = Console(stderr=True, quiet=quiet)

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
            make: makes the result; it may keep an unfinished state in the file that it is given, if it is given one.
            save: writes it to a path, atomically.
            load: reads it back.

        Returns:
            The result.
        """
        if self.directory is None:
            return make(None)
        path = self.directory / STEPS / name
        record = path.with_name(path.name + ".json")
        key = hashlib.sha256(json.dumps([__version__, name, inputs], sort_keys=True).encode()).hexdigest()
        if path.exists() and record.exists() and json.loads(record.read_text()) == [key, _content_hash(path)]:
            self.reused.append(name)
            self.console.print(f"[dim]reused {name}[/dim]")
            return load(path)
        unfinished = path.with_name(f"{name}.{key[:12]}.unfinished")
        for outdated in set(path.parent.glob(f"{name}.*.unfinished")) - {unfinished}:
            outdated.unlink()
        result = make(unfinished)
        save(result, path)
        write_text(record, json.dumps([key, _content_hash(path)]))
        unfinished.unlink(missing_ok=True)
        return result


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
        raise DataError(f"results go into a folder; {directory} is or lies in a file (expected a folder or a new path)")
    return directory


def save_json(value: Any, path: Path) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
