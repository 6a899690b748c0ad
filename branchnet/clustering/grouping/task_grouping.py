"""Task grouping by inter-task affinity (TAG: Fifty et al. 2021, "Efficiently identifying task groupings").

`matrix[i, j]` is the effect of task i's step on task j's loss; larger is better. A group gives a task the mean effect
of the group's other tasks on it; a task takes the best chosen group that holds it; a grouping's score is the mean over
tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.grouping.integer_program import Groups, best_choice
from branchnet.clustering.grouping.network_selection import task_sets
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, BudgetError

_LARGEST = 12


@dataclass(frozen=True)
class Grouping:
    """Groups of tasks, which may overlap.

    Attributes:
        groups: the groups.
        assignment: `{task: index into groups}`, the group that serves each task.
        score: mean over tasks of the effect of its group on it.
    """

    groups: tuple[frozenset[str], ...]
    assignment: dict[str, int]
    score: float

    def tree(self, depth: int) -> Tree:
        """Whole networks as a tree: tasks that the same group serves share all `depth` stages."""
        served = [[task for task, group in self.assignment.items() if group == g] for g in range(len(self.groups))]
        return Tree.grouped([tasks for tasks in served if tasks], depth)


def group_by_affinity(
    matrix: npt.ArrayLike, max_groups: int, *, tasks: Sequence[str], singles: Sequence[float] | None = None
) -> Grouping:
    """The grouping of best score with at most `max_groups` groups; of equals (relative 1e-9) the one of fewest groups.

    Args:
        matrix: (N, N); the diagonal is not used.
        max_groups: at least 1.
        tasks: N distinct names.
        singles: score of each task when trained alone; groups of one task are allowed only if it is given.

    Raises:
        AffinityError: a matrix of the wrong shape or with values that are not finite, or too many tasks (over 12).
        BudgetError: `max_groups` below 1.
    """
    names = Tree.shared(tasks, 1).tasks
    effects = _checked(matrix, names)
    if max_groups < 1:
        raise BudgetError(f"at most {max_groups} groups were asked for; at least 1 is needed", smallest=1)
    sets = task_sets(tuple(range(len(names))), smallest=2 if singles is None and len(names) > 1 else 1)
    alone = np.zeros(len(names)) if singles is None else np.array(singles, dtype=np.float64)
    losses = np.full((len(sets), len(names)), np.inf)
    for row, group in enumerate(sets):
        for task in group:
            losses[row, task] = -_effect(effects, group, task, alone)
    groups = Groups(losses, np.ones(len(sets)))
    chosen = best_choice(groups, max_groups)
    if chosen is None:
        raise BudgetError(f"{max_groups} groups cannot hold all tasks")
    return Grouping(
        groups=tuple(frozenset(names[i] for i in sets[m]) for m in chosen),
        assignment={task: chosen.index(m) for task, m in zip(names, groups.servers(chosen), strict=True)},
        score=-groups.total(chosen) / len(names),
    )


def _effect(effects: npt.NDArray[np.float64], group: Sequence[int], task: int, alone: npt.NDArray[np.float64]) -> float:
    others = [other for other in group if other != task]
    if not others:
        return float(alone[task])
    return math.fsum(effects[other, task] for other in others) / len(others)


def _checked(matrix: npt.ArrayLike, tasks: Sequence[str]) -> npt.NDArray[np.float64]:
    effects = np.array(matrix, dtype=np.float64)
    n = len(tasks)
    if effects.shape != (n, n):
        raise AffinityError(f"the matrix of {n} tasks must have the shape {(n, n)}; it has {effects.shape}")
    if n > _LARGEST:
        raise AffinityError(f"{n} tasks have too many groups to try; at most {_LARGEST} are supported")
    off = ~np.eye(n, dtype=np.bool_)
    if not np.isfinite(effects[off]).all():
        i, j = np.argwhere(~np.isfinite(effects) & off)[0]
        raise AffinityError(f"the effect of {tasks[i]!r} on {tasks[j]!r} is {effects[i, j]}")
    return effects
