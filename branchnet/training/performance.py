"""Performance against the single-task networks, task by task and as one number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from branchnet.errors import TrainingError


def relative_changes(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Relative change of each task's metric against its single-task network, in percent; better is positive.

    From 0 to 0 nothing changed; from 0 to another value there is no relative change: NaN.

    Raises:
        TrainingError: a task without a metric.
    """
    changes = {}
    for task, before in single.items():
        if task not in other:
            raise TrainingError(f"task {task!r} has a single-task metric but none in the network compared")
        sign = -1 if lower_is_better[task] else 1
        difference = sign * (other[task] - before)
        changes[task] = 100 * difference / before if before else (math.nan if difference else 0.0)
    return changes


def multi_task_performance(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> float:
    """Mean of the relative changes: Delta of Maninis et al. (2019, "Attentive Single-Tasking of Multiple Tasks").

    Tasks whose single-task metric is 0 and the other's is not have no relative change and do not count, with a warning
    that names them; NaN where no task is left.

    Raises:
        TrainingError: as `relative_changes`.
    """
    return mean_change(relative_changes(single, other, lower_is_better))


def mean_change(changes: Mapping[str, float]) -> float:
    """Mean over the tasks that have a relative change, see `multi_task_performance`."""
    if undefined := [task for task, change in changes.items() if math.isnan(change)]:
        warnings.warn(f"single-task metrics of {undefined} are 0: these tasks do not count in the mean", stacklevel=3)
    defined = [change for change in changes.values() if not math.isnan(change)]
    return sum(defined) / len(defined) if defined else math.nan
