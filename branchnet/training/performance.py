"""Performance against the single-task networks, task by task and as one number."""

from __future__ import annotations

from collections.abc import Mapping

from branchnet.errors import TrainingError


def relative_changes(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Relative change of each task's metric against its single-task network, in percent; better is positive.

    Raises:
        TrainingError: a task without a metric, or a single-task metric of 0, which nothing can be relative to.
    """
    changes = {}
    for task, before in single.items():
        if task not in other:
            raise TrainingError(f"task {task!r} has a single-task metric but none in the network compared")
        if before == 0:
            raise TrainingError(f"the single-task metric of {task!r} is 0: no change can be given relative to it")
        sign = -1 if lower_is_better[task] else 1
        changes[task] = 100 * sign * (other[task] - before) / before
    return changes


def multi_task_performance(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> float:
    """Mean of the relative changes: Delta of Maninis et al. (2019, "Attentive Single-Tasking of Multiple Tasks").

    Raises:
        TrainingError: as `relative_changes`.
    """
    changes = relative_changes(single, other, lower_is_better)
    return sum(changes.values()) / len(changes)
