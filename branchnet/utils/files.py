"""Writing files so that a reader, or a killed run, never meets half of one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = ".branchnet-"
_LONGEST_STEM = 40


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that it is there whole or not at all.

    The temporary keeps the suffix of `path`, for writers that choose a format by it. Missing parent folders are made.
    A run that is killed leaves its temporary behind, see `remove_orphans`.

    Args:
        path: the file to write.

    Yields:
        A temporary path next to `path`; it is flushed to disk and renamed to `path` on success, removed otherwise.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_TEMPORARY}{target.stem.removeprefix(_TEMPORARY)[:_LONGEST_STEM]}-"
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # otherwise a crash could leave the new name on an empty file
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8, atomically.

    Args:
        path: the file to write.
        text: its content, with `\\n` at the end of lines on every system.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_orphans(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove the temporaries of runs that were killed.

    Args:
        folder: where files are written with `atomic_write`; it need not exist. Nobody else may be writing there, but
            to temporaries that are younger than `older_than`.
        older_than: seconds since a temporary was last written to.
    """
    latest = time.time() - older_than
    for temporary in folder.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):  # another run removes them, too
            if temporary.is_file() and temporary.stat().st_mtime <= latest:
                temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)  # there is no call that only reads it
    os.umask(mask)
    return mask
