"""Progress bars on stderr for work that takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_silent: ContextVar[bool] = ContextVar("silent", default=False)


class Advance(Protocol):
    """Reports that one more unit of work is done, with a few words on how it goes."""

    def __call__(self, note: str = "") -> None:
        """Advance the bar by one unit."""


@contextmanager
def progress_bar(description: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar on stderr.

    Args:
        description: what is being done.
        total: number of units.
        shown: whether to draw it.
        done: units that are finished already.

    Yields:
        The function that advances the bar by one unit; where the package rich is not installed, nothing is shown.
    """
    if not shown or _silent.get() or not _has_rich():
        yield _advance_unseen
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(note: str = "") -> None:
            bar.update(task, advance=1, note=note)

        yield advance


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def _advance_unseen(note: str = "") -> None:
    """Where no bar is shown."""


@contextmanager
def silence() -> Iterator[None]:
    """Show no bar inside."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
