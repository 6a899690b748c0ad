"""Progress on stderr and a time limit for long searches."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from branchnet.errors import BranchnetError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class OutOfTime(BranchnetError):
    """The time limit passed; searches catch it and return the best tree so far."""


class Deadline:
    """Counts steps of a search, shows them if asked to, and raises OutOfTime once its time has passed.

    Args:
        seconds: time limit; None = none.
        show: whether to draw a progress bar on stderr, where the package rich is installed.
    """

    def __init__(self, seconds: float | None = None, *, show: bool = False) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._show = show
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Deadline:
        if self._show:
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:
                return self
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def left(self, most: float) -> float:
        """Seconds until the limit, but at most `most`."""
        return most if self._end is None else min(most, max(self._end - time.monotonic(), 0.0))

    def begin(self, what: str, total: int) -> None:
        """Start a phase of `total` steps."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total)

    def step(self, steps: int = 1) -> None:
        """Count steps.

        Raises:
            OutOfTime: the limit has passed.
        """
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, steps)
        if self._end is not None and time.monotonic() > self._end:
            raise OutOfTime("the time limit has passed")
