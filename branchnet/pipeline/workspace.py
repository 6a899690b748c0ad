"""A folder of results in which finished steps are found again: what makes a run resumable.

Each step leaves one file and beside it a record of what it was made from and of the file's content. A step whose record
matches is read back instead of made again; a damaged or outdated file is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

import branchnet
from branchnet.errors import DataError
from branchnet.utils.files import write_text

T = TypeVar("T")

STEPS = ".steps"


class Workspace:
    """Results of a run in `directory`, which is made with the first of them.

    Attributes:
        directory: where the user finds the results.
        reused: names of the steps that were read back.
        console: where messages go (stderr).
    """

    def __init__(self, directory: str | Path, *, quiet: bool = False) -> None:
        self.directory = checked_folder(Path(directory))
        self.reused: list[str] = []
        self.console = Console(stderr=True, quiet=quiet)

    def path(self, name: str) -> Path:
        """Where the file of step `name` lies."""
        return self.directory / STEPS / name

    def step(
        self,
        name: str,
        inputs: Any,
        *,
        make: Callable[[Path], T],
        save: Callable[[T, Path], object],
        load: Callable[[Path], T],
    ) -> T:
        """Return the result of a step, read back where it was made from the same inputs.

        Args:
            name: the file that keeps the result.
            inputs: everything that decides the result, as JSON values.
            make: makes the result; it may keep an unfinished state in the file that it is given.
            save: writes it to a path, atomically.
            load: reads it back.
        """
        path = self.path(name)
        record = path.with_name(path.name + ".json")
        key = hashlib.sha256(json.dumps([branchnet.__version__, name, inputs], sort_keys=True).encode()).hexdigest()
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
        return result


def checked_folder(directory: Path) -> Path:
    """`directory`, which need not exist.

    Raises:
        DataError: it is a file, or lies in one.
    """
    taken = next((path for path in (directory, *directory.parents) if path.exists()), None)
    if taken is not None and not taken.is_dir():
        raise DataError(f"results go into a folder, and {directory} is or lies in a file")
    return directory


def save_json(value: Any, path: Path) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
