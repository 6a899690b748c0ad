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

    Args:
        single: each task's metric by its single-task network.
        other: each task's metric by the network compared.
        lower_is_better: for each task whether a smaller metric is better.

    Returns:
        changes by task, in percent.

    Raises:
        TrainingError: a task without a metric.
    """
    changes = {}
    for task, before in single.items():
        if task not in other:
            raise TrainingError(
                f"task {task!r} has no metric in the network compared; expected those of {list(single)}"
            )
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

    Args:
        single, other, lower_is_better: as for `relative_changes`.

    Returns:
        the mean, in percent; positive is better than the single-task networks.

    Raises:
        TrainingError: as `relative_changes`.

    >>> import branchnet
    >>> single, other = {"depth": 0.5, "class": 80.0}, {"depth": 0.45, "class": 76.0}
    >>> round(branchnet.multi_task_performance(single, other, {"depth": True, "class": False}), 6)
    2.5
    """
    return mean_change(relative_changes(single, other, lower_is_better))


def mean_change(changes: Mapping[str, float]) -> float:
    """Return the mean over the tasks that have a relative change, see `multi_task_performance`.

    Args:
        changes: relative changes by task, in percent; NaN where there is none.
    """
    if undefined := [task for task, change in changes.items() if math.isnan(change)]:
        warnings.warn(f"single-task metrics of {undefined} are 0: these tasks do not count in the mean", stacklevel=3)
    defined = [change for change in changes.values() if not math.isnan(change)]
    return sum(defined) / len(defined) if defined else math.nan
