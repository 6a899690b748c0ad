"""Names of tasks and nodes that users give: those that are meant, and what to say of an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from branchnet.errors import BuildError


def wanted_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks asked for, all by default, in the order of `known`.

    Args:
        tasks: names in any order, or None.
        known: all tasks, in order.

    Raises:
        BuildError: no task, or one that is not known.
    """
    if tasks is None:
        return tuple(known)
    asked = () if isinstance(tasks, str) else tuple(tasks)
    if not asked:
        raise BuildError(
            f"tasks={tasks!r} names no task; expected one or more of {list(known)}, e.g. tasks={[*known][:1]}"
        )
    if unknown := [task for task in asked if task not in known]:
        raise BuildError(f"unknown task {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    return tuple(task for task in known if task in asked)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: the known name that is near to it, or all of them."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"
