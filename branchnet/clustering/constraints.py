"""What a tree must look like besides fitting the budget.

Everything a user can ask is put in two forms that all solvers read: for each stage the pairs that must share and the
pairs that must not, and the least and largest number of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import TreeError

Pairs = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Constraints:
    """Restrictions on the tree.

    Attributes:
        shared_stages: the first so many stages are shared by all tasks.
        separate_stages: the last so many stages are shared by no two tasks.
        max_clusters: largest number of clusters, for every stage or one number per stage; None = no limit.
        together: groups of tasks that share every stage before the separate ones.
        apart: groups of tasks of which no two share any stage after the shared ones.
        extend: a tree of some of the tasks that stays as it is; the other tasks are attached to it.
        depths: how many stages the tasks pass that leave the trunk early: they are alone from there on, and the other
            constraints hold before. Staged networks and affinities that know of such tasks say so themselves.

    >>> values = np.array([[[1.0, 0.9, 0.8], [0.9, 1.0, 0.8], [0.8, 0.8, 1.0]],
    ...                    [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    >>> affinity = branchnet.Affinity(["depth", "normals", "scene"], ["layer1", "layer2"], values)
    >>> apart = branchnet.Constraints(apart=[["depth", "normals"]], shared_stages=1)
    >>> branchnet.search(affinity, [1.0, 1.0], "60% params", constraints=apart).tree.partitions[1]
    (('depth',), ('normals', 'scene'))
    """

    shared_stages: int = 0
    separate_stages: int = 0
    max_clusters: int | Sequence[int] | None = None
    together: Sequence[Sequence[str]] = ()
    apart: Sequence[Sequence[str]] = ()
    extend: Tree | None = None
    depths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rules:
    """Constraints in the form that solvers read.

    Attributes:
        together: (D, N, N), pairs that must share; symmetric and transitive, True on the diagonal.
        apart: (D, N, N), pairs that must not share; symmetric.
        min_width: D least numbers of clusters.
        max_width: D largest numbers of clusters.
    """

    together: Pairs
    apart: Pairs
    min_width: tuple[int, ...]
    max_width: tuple[int, ...]

    def allowed_clusters(self, stage: int) -> npt.NDArray[np.bool_]:
        """Which sets of tasks may be a cluster of `stage`, (2^N,), indexed by bit mask."""
        n = self.together.shape[1]
        masks = np.arange(1 << n)
        allowed = np.ones(1 << n, dtype=np.bool_)
        for task in range(n):
            inside = (masks >> task) & 1 == 1
            needed, barred = _bits(self.together[stage, task]), _bits(self.apart[stage, task])
            allowed &= ~inside | (((masks & needed) == needed) & ((masks & barred) == 0))
        return allowed

    def allows(self, stage: int, labels: Sequence[int]) -> bool:
        """Whether the partition with these cluster numbers may be that of `stage`."""
        numbers = np.asarray(labels)
        same = numbers[:, None] == numbers[None, :]
        width = len(np.unique(numbers))
        fine = self.min_width[stage] <= width <= self.max_width[stage]
        return bool(fine and (same >= self.together[stage]).all() and not (same & self.apart[stage]).any())


def _bits(row: npt.NDArray[np.bool_]) -> int:
    return sum(1 << int(task) for task in np.flatnonzero(row))


def rules_of(constraints: Constraints, tasks: Sequence[str], depth: int) -> Rules:
    """Check the constraints and bring them into the solvers' form.

    Raises:
        TreeError: unknown tasks, numbers of stages or clusters out of range, or constraints that contradict each other.
    """
    n = len(tasks)
    shared, separate = constraints.shared_stages, constraints.separate_stages
    if shared < 0 or separate < 0 or shared + separate > depth:
        raise TreeError(
            f"{shared} shared and {separate} separate stages do not fit in {depth} stages; expected a sum of at most "
            f"{depth}"
        )
    together, apart = np.zeros((depth, n, n), np.bool_), np.zeros((depth, n, n), np.bool_)
    together[:shared] = True
    apart[depth - separate :] = ~np.eye(n, dtype=np.bool_)
    for group in constraints.together:
        index = _indices(group, tasks)
        together[: depth - separate, index[:, None], index] = True
    for group in constraints.apart:
        index = _indices(group, tasks)
        apart[shared:, index[:, None], index] = True
    if constraints.extend is not None:
        _extend(constraints.extend, tasks, together, apart)
    left = _left(constraints.depths, tasks, depth)
    beyond = left[:, :, None] | left[:, None, :]
    together &= ~beyond
    apart |= beyond
    diagonal = np.arange(n)
    together[:, diagonal, diagonal], apart[:, diagonal, diagonal] = True, False
    _spread(together, apart)
    _check(together, apart, tasks)
    return Rules(together, apart, *_width_limits(constraints, together, left.sum(axis=1)))


def _indices(group: Sequence[str], tasks: Sequence[str]) -> npt.NDArray[np.intp]:
    if isinstance(group, str):
        raise TreeError(f"a constraint has the text {group!r}; expected a group of task names, such as [{group!r}]")
    for task in group:
        if task not in tasks:
            raise TreeError(f"a constraint names the unknown task {task!r}; expected some of {', '.join(tasks)}")
    return np.array([list(tasks).index(task) for task in group], dtype=np.intp)


def _extend(tree: Tree, tasks: Sequence[str], together: Pairs, apart: Pairs) -> None:
    if tree.depth != len(together):
        raise TreeError(f"the tree to extend has {tree.depth} stages; expected {len(together)}, as the affinities have")
    index = _indices(tree.tasks, tasks)
    for stage, labels in enumerate(tree.labels()):
        numbers = np.array(labels)
        same = numbers[:, None] == numbers[None, :]
        together[stage, index[:, None], index] |= same
        apart[stage, index[:, None], index] |= ~same


def _spread(together: Pairs, apart: Pairs) -> None:
    """What must share a stage must share the earlier ones; what must not, must not share the later ones."""
    for stage in range(len(together) - 2, -1, -1):
        together[stage] |= together[stage + 1]
    for stage in range(1, len(apart)):
        apart[stage] |= apart[stage - 1]
    for stage in range(len(together)):
        # Warshall's transitive closure: sharing is an equivalence.
        for middle in range(together.shape[1]):
            together[stage] |= together[stage, :, middle, None] & together[stage, None, middle, :]
        linked = together[stage].astype(np.intp)
        apart[stage] = (linked @ apart[stage].astype(np.intp) @ linked) > 0


def _check(together: Pairs, apart: Pairs, tasks: Sequence[str]) -> None:
    clash = np.argwhere(together & apart)
    if len(clash):
        stage, i, j = max(clash.tolist(), key=lambda place: place[1] != place[2])
        raise TreeError(
            f"the constraints contradict each other: {tasks[i]!r} and {tasks[j]!r} must and must not share "
            f"stage {stage}; expected at most one of both"
        )


def _left(depths: Mapping[str, int], tasks: Sequence[str], depth: int) -> Pairs:
    """Which tasks have left the trunk before a stage, (D, N)."""
    for task, own in depths.items():
        if task not in tasks or type(own) is not int or not 1 <= own <= depth:
            raise TreeError(
                f"depths has {own!r} for {task!r}; expected a number of stages from 1 to {depth} for some of "
                f"{', '.join(tasks)}"
            )
    return np.arange(depth)[:, None] >= np.array([depths.get(task, depth) for task in tasks])


def _width_limits(
    constraints: Constraints, together: Pairs, left: npt.NDArray[np.intp]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Least and largest widths; tasks that have left, `left` of them at each stage, count besides `max_clusters`."""
    depth, n = together.shape[:2]
    given = constraints.max_clusters
    limits = [given] * depth if isinstance(given, int) else [n] * depth if given is None else list(given)
    if len(limits) != depth or any(limit < 1 for limit in limits):
        raise TreeError(f"max_clusters is {given!r}; expected a positive number, or {depth} of them")
    groups = [len({tuple(row) for row in stage.tolist()}) for stage in together]
    gone = [int(count) for count in left]
    largest = [min(limit + beyond, group) for limit, beyond, group in zip(limits, gone, groups, strict=True)]
    # Partitions only get finer, so an early stage has no more clusters than a later one may have.
    for stage in range(depth - 2, -1, -1):
        largest[stage] = min(largest[stage], largest[stage + 1])
    return tuple(min(beyond + 1, n) for beyond in gone), tuple(largest)
