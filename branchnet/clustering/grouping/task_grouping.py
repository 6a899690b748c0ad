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
from branchnet.clustering.grouping.whole_networks import joined_tree, shared_trees
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, BudgetError

_LARGEST = 12  # 4,095 groups, each a variable of the programme with one more for each of its tasks


@dataclass(frozen=True)
class Grouping:
    """Groups of tasks, which may overlap.

    Attributes:
        groups: the groups.
        assignment: `{task: index into groups}`, the group that serves each task.
        score: mean over tasks of the effect of its group on it.

    >>> effects = [[0.0, 0.5, -0.2], [0.4, 0.0, -0.1], [-0.3, -0.2, 0.0]]
    >>> found = branchnet.group_by_affinity(effects, 2, tasks=["a", "b", "c"])
    >>> isinstance(found, branchnet.Grouping), round(found.score, 4)
    (True, 0.2667)
    >>> sorted(map(sorted, found.groups)), found.served               # b helps c, and is served with a
    ([['a', 'b'], ['b', 'c']], (('a', 'b'), ('c',)))
    >>> [tree.tasks for tree in found.trees(depth=2)]
    [('a', 'b'), ('b', 'c')]
    """

    groups: tuple[frozenset[str], ...]
    assignment: dict[str, int]
    score: float

    @property
    def served(self) -> tuple[tuple[str, ...], ...]:
        """The tasks that each group serves; its others are auxiliary."""
        return tuple(tuple(t for t, one in self.assignment.items() if one == g) for g in range(len(self.groups)))

    def trees(self, depth: int) -> tuple[Tree, ...]:
        """Write every group's network as a tree of all its tasks, whose effects were measured.

        Args:
            depth: number of stages.

        Returns:
            One tree for each group: all of its tasks share all stages.
        """
        return shared_trees(self.groups, tuple(self.assignment), depth)

    def tree(self, depth: int) -> Tree:
        """Write the whole networks as one tree.

        Args:
            depth: number of stages.

        Returns:
            The tree in which tasks that the same group serves share all stages.

        Raises:
            TreeError: a group has auxiliary tasks, trained along and served by another one, which a tree cannot say.
        """
        return joined_tree(self.groups, self.served, depth)


def group_by_affinity(
    matrix: npt.ArrayLike, max_groups: int, *, tasks: Sequence[str], singles: Sequence[float] | None = None
) -> Grouping:
    """Find the grouping of best score; of equals (relative 1e-9) the one of fewest groups.

    Args:
        matrix: (N, N); `[i, j]` is the effect of task i's step on task j's loss, larger is better; the diagonal is not
            used.
        max_groups: largest number of groups, at least 1.
        tasks: N distinct names.
        singles: score of each task when trained alone; groups of one task are allowed only if it is given.

    Returns:
        The groups, and which of them serves each task.

    Raises:
        AffinityError: a matrix of the wrong shape or with values that are not finite, or too many tasks (over 12).
        BudgetError: `max_groups` below 1.

    >>> effects = [[0.0, 0.5, -0.2], [0.4, 0.0, -0.1], [-0.3, -0.2, 0.0]]
    >>> found = branchnet.group_by_affinity(effects, 2, tasks=["a", "b", "c"])
    >>> sorted(map(sorted, found.groups))
    [['a', 'b'], ['b', 'c']]
    """
    names = Tree.shared(tasks, 1).tasks
    effects = _checked(matrix, names)
    if max_groups < 1:
        raise BudgetError(f"max_groups is {max_groups}; expected at least 1", smallest=1)
    sets = task_sets(tuple(range(len(names))), smallest=2 if singles is None and len(names) > 1 else 1)
    alone = np.zeros(len(names)) if singles is None else np.array(singles, dtype=np.float64)
    losses = np.full((len(sets), len(names)), np.inf)
    for row, group in enumerate(sets):
        for task in group:
            losses[row, task] = -_effect(effects, group, task, alone)
    groups = Groups(losses, np.ones(len(sets)))
    chosen = best_choice(groups, max_groups)
    if chosen is None:
        raise BudgetError(f"{max_groups} groups cannot hold all tasks; expected more, or singles=")
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
        raise AffinityError(f"matrix has shape {effects.shape}; expected {(n, n)} for {n} tasks")
    if n > _LARGEST:
        raise AffinityError(f"{n} tasks have too many groups to try; expected at most {_LARGEST}")
    off = ~np.eye(n, dtype=np.bool_)
    if not np.isfinite(effects[off]).all():
        i, j = np.argwhere(~np.isfinite(effects) & off)[0]
        raise AffinityError(f"the effect of {tasks[i]!r} on {tasks[j]!r} is {effects[i, j]}; expected a finite number")
    return effects
