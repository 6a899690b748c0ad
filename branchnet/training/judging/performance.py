"""Performance against the single-task networks, task by task and as one number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from branchnet.errors import TrainingError
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric

EXTREME_CHANGE = 1000.0
"""Per cent above which a change says that the single-task metric is close to 0, and little about the network."""


def absolute_changes(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Change of each task's metric against its single-task network, in the metric's own unit; better is positive.

    Args:
        single: each task's metric by its single-task network.
        other: each task's metric by the network compared.
        lower_is_better: for each task whether a smaller metric is better.

    Returns:
        changes by task; points of a metric in percent.

    Raises:
        TrainingError: a task without a metric or a direction, or a metric that is not finite.

    >>> single, other = {"depth": 0.5, "class": 80.0}, {"depth": 0.25, "class": 76.0}
    >>> absolute_changes(single, other, {"depth": True, "class": False})
    {'depth': 0.25, 'class': -4.0}
    """
    _check(single, other, lower_is_better)
    return {
        task: (-1 if lower_is_better[task] else 1) * (other[task] - before) + 0.0  # adding 0 turns -0 into 0
        for task, before in single.items()
    }


def relative_changes(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Change of each task's metric against the size of its single-task network's, in percent; better is positive.

    Metrics below 0 are divided by their absolute value, so that the sign is that of `absolute_changes`. From 0 to 0
    nothing changed; from 0 to another value there is no relative change: NaN.

    Args:
        single, other, lower_is_better: as for `absolute_changes`.

    Returns:
        changes by task, in percent.

    Raises:
        TrainingError: as `absolute_changes`.

    >>> relative_changes({"r2": -5.0}, {"r2": 5.0}, {"r2": False})
    {'r2': 200.0}
    """
    return {
        task: 100 * change / abs(single[task]) if single[task] else (math.nan if change else 0.0)
        for task, change in absolute_changes(single, other, lower_is_better).items()
    }


def multi_task_performance(
    single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> float:
    """Mean of the relative changes: Delta of Maninis et al. (2019, "Attentive Single-Tasking of Multiple Tasks").

    Their metrics are positive; with metrics that may be negative, as explained variance, each change is divided by the
    absolute value. Tasks whose single-task metric is 0 and the other's is not have no relative change and do not count,
    with a warning that names them; NaN where no task is left. A warning also names tasks that changed by more than
    1000%: their single-task metric is close to 0, and they decide the mean; `absolute_changes` tells more there.

    Args:
        single, other, lower_is_better: as for `absolute_changes`.

    Returns:
        the mean, in percent; positive is better than the single-task networks.

    Raises:
        TrainingError: as `absolute_changes`.

    >>> import branchnet
    >>> single, other = {"depth": 0.5, "class": 80.0}, {"depth": 0.45, "class": 76.0}
    >>> round(branchnet.multi_task_performance(single, other, {"depth": True, "class": False}), 6)
    2.5
    """
    return mean_change(relative_changes(single, other, lower_is_better))


def delta(single: Mapping[str, float], other: Mapping[str, float], metrics: Mapping[str, AnyMetric]) -> float:
    """`multi_task_performance` with each task's direction read from its metric.

    Args:
        single: each task's metric by its single-task network.
        other: each task's metric by the network compared.
        metrics: for each task its metric, as `evaluate` takes it.

    Returns:
        the mean of the relative changes, in percent; positive is better than the single-task networks.

    Raises:
        TrainingError: as `absolute_changes`, or a metric that does not say whether larger is better.

    >>> import branchnet
    >>> metrics = {"depth": branchnet.training.rmse("m"), "class": branchnet.training.accuracy()}
    >>> round(branchnet.training.delta({"depth": 0.5, "class": 80.0}, {"depth": 0.45, "class": 76.0}, metrics), 6)
    2.5
    """
    lower = {task: not read_metric(metric).larger_is_better for task, metric in metrics.items()}
    return multi_task_performance(single, other, lower)


def mean_change(changes: Mapping[str, float]) -> float:
    """Return the mean over the tasks that have a relative change, see `multi_task_performance`.

    Args:
        changes: relative changes by task, in percent; NaN where there is none.
    """
    if undefined := [task for task, change in changes.items() if math.isnan(change)]:
        warnings.warn(f"single-task metrics of {undefined} are 0: these tasks do not count in the mean", stacklevel=3)
    if extreme := {task: round(changes[task]) for task in extreme_tasks(changes)}:
        warnings.warn(
            f"single-task metrics of {list(extreme)} are close to 0: their changes of {list(extreme.values())}% decide "
            "the mean; look at the change in the metric's own unit (branchnet.training.absolute_changes)",
            stacklevel=3,
        )
    return mean_of_defined(changes)


def mean_of_defined(changes: Mapping[str, float]) -> float:
    """The mean over the tasks that have a relative change; NaN where none has one.

    Args:
        changes: relative changes by task, in percent; NaN where there is none.
    """
    defined = [change for change in changes.values() if not math.isnan(change)]
    return sum(defined) / len(defined) if defined else math.nan


def extreme_tasks(changes: Mapping[str, float]) -> list[str]:
    """The tasks that changed by so much that their single-task metric must be close to 0.

    Args:
        changes: relative changes by task, in percent; NaN where there is none.
    """
    return [task for task, change in changes.items() if abs(change) > EXTREME_CHANGE]


def _check(single: Mapping[str, float], other: Mapping[str, float], lower_is_better: Mapping[str, bool]) -> None:
    if not single:
        raise TrainingError("there are no single-task metrics to compare with; expected one for each task")
    if set(single) != set(other):
        raise TrainingError(
            f"tasks {sorted(set(single) ^ set(other))} have a metric of only one network; expected both for each task: "
            f"{list(single)}"
        )
    if missing := [task for task in single if task not in lower_is_better]:
        raise TrainingError(f"tasks {missing} are not in lower_is_better; expected True or False for {list(single)}")
    for name, metrics in (("single-task network", single), ("network compared", other)):
        if wrong := {task: value for task, value in metrics.items() if not math.isfinite(value)}:
            raise TrainingError(f"metrics of the {name} are {wrong}; expected finite numbers")
