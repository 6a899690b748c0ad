"""What makes a tree: every task once at every stage, clusters that only split, tasks alone where they have left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from branchnet.errors import TreeError

Cluster = tuple[str, ...]
Partition = tuple[Cluster, ...]


def checked_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """The names of the tasks.

    Raises:
        TreeError: names that repeat or are empty, or none.
    """
    if isinstance(tasks, str):
        raise TreeError(f"tasks is the text {tasks!r}; expected a sequence of names")
    names = tuple(tasks)
    for task in names:
        if not isinstance(task, str) or not task:
            raise TreeError(f"a task is named {task!r}; expected a non-empty string")
    repeated = sorted({task for task in names if names.count(task) > 1})
    if repeated:
        raise TreeError(f"tasks names more than once: {', '.join(repeated)}; expected distinct names")
    if not names:
        raise TreeError("tasks is empty; expected at least one name")
    return names


def canonical(stage: int, clusters: Iterable[Iterable[str]], order: dict[str, int]) -> Partition:
    """The clusters of a stage in order.

    Raises:
        TreeError: a stage that does not hold every task exactly once.
    """
    given = [_cluster(stage, cluster) for cluster in clusters]
    flat = [task for cluster in given for task in cluster]
    for task in flat:
        if task not in order:
            raise TreeError(f"stage {stage} names the unknown task {task!r}; expected some of {', '.join(order)}")
    missing = [task for task in order if task not in flat]
    if missing:
        raise TreeError(f"stage {stage} leaves out {', '.join(missing)}; expected every task once")
    if len(flat) > len(order):
        twice = sorted({task for task in flat if flat.count(task) > 1})
        raise TreeError(f"stage {stage} names more than once: {', '.join(twice)}; expected every task once")
    inner = [tuple(sorted(cluster, key=order.__getitem__)) for cluster in given]
    return tuple(sorted(inner, key=lambda cluster: order[cluster[0]]))


def _cluster(stage: int, cluster: Iterable[str]) -> tuple[str, ...]:
    if isinstance(cluster, str):
        raise TreeError(
            f"stage {stage} has the text {cluster!r}; expected a group of task names, such as [{cluster!r}]"
        )
    tasks = tuple(cluster)
    if not tasks:
        raise TreeError(f"stage {stage} has an empty cluster; expected at least one task in each")
    return tasks


def check_nesting(stages: Sequence[Partition]) -> None:
    """Refuse a stage that joins tasks which an earlier one has separated.

    Raises:
        TreeError: names both tasks.
    """
    for stage, (coarse, fine) in enumerate(pairwise(stages)):
        home = {task: number for number, cluster in enumerate(coarse) for task in cluster}
        for cluster in fine:
            other = next((task for task in cluster if home[task] != home[cluster[0]]), None)
            if other is not None:
                raise TreeError(
                    f"stage {stage + 1} joins {cluster[0]!r} and {other!r}, which stage {stage} has separated; "
                    "expected clusters that only split: a branch cannot grow together again"
                )


def checked_depths(depths: Mapping[str, int], tasks: tuple[str, ...], stages: Sequence[Partition]) -> dict[str, int]:
    """The depths of tasks that leave early, in the order of the tasks.

    Raises:
        TreeError: depths out of range, or of tasks that are not alone from there on.
    """
    if unknown := sorted(set(depths) - set(tasks)):
        raise TreeError(f"depths names the unknown task {unknown[0]!r}; expected some of {', '.join(tasks)}")
    found = {task: depths[task] for task in tasks if depths.get(task, len(stages)) != len(stages)}
    for task, depth in found.items():
        if type(depth) is not int or not 1 <= depth < len(stages):
            raise TreeError(f"the depth of {task!r} is {depth!r}; expected a number of stages from 1 to {len(stages)}")
        together = next((cluster for cluster in stages[depth] if task in cluster and len(cluster) > 1), None)
        if together is not None:
            raise TreeError(
                f"stage {depth} joins {', '.join(map(repr, together))}, and {task!r} leaves the trunk before it; "
                "expected it alone from there on"
            )
    return found
