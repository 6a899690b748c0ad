"""Which tasks share which stage, where inputs belong to one task each: a partition for each stage, not nested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from branchnet.errors import TreeError
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.clustering.trees.tree import Tree

Cluster = tuple[str, ...]


@dataclass(frozen=True, init=False)
class Sharing:
    """D partitions of the tasks, of which none needs to refine another.

    A cluster of stage d is one copy of that stage, as in a `Tree`. But tasks that part at a stage may meet again at a
    later one, since each input is computed for one task: what is shared is memory, not computation.

    Attributes:
        tasks: N names.
        partitions: for each stage its clusters, each in task order, ordered by their first tasks.

    Args:
        tasks: the names.
        partitions: for each stage groups of tasks, which have every task once.

    Raises:
        TreeError: tasks named twice, no stage, or groups that are not a partition of the tasks.

    >>> sharing = branchnet.Sharing(["a", "b", "c"], [[["a", "b"], ["c"]], [["a"], ["b", "c"]]])
    >>> sharing.widths
    (2, 2)
    >>> sharing.cluster_of("b", 1)
    1
    >>> print(sharing)
    3 tasks, 2 stages, 4 nodes, not nested
    stage 0: a, b | c
    stage 1: a | b, c
    """

    tasks: tuple[str, ...]
    partitions: tuple[tuple[Cluster, ...], ...]

    def __init__(self, tasks: Iterable[str], partitions: Sequence[Iterable[Iterable[str]]]) -> None:
        names = tuple(tasks)
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise TreeError(f"tasks is {list(names)!r}; expected one or more distinct names")
        if not partitions:
            raise TreeError("there are no partitions; expected one for each stage")
        object.__setattr__(self, "tasks", names)
        object.__setattr__(self, "partitions", tuple(_partition(names, d, one) for d, one in enumerate(partitions)))

    @classmethod
    def from_labels(cls, tasks: Sequence[str], labels: Sequence[Sequence[int]]) -> Sharing:
        """Make one from cluster numbers.

        Args:
            tasks: N names.
            labels: for each stage N numbers, equal ones for tasks that share it.

        Returns:
            the sharing.

        Raises:
            TreeError: as the class.
        """
        groups = [
            [[task for task, other in zip(tasks, row, strict=True) if other == label] for label in dict.fromkeys(row)]
            for row in labels
        ]
        return cls(tasks, groups)

    @classmethod
    def from_tree(cls, tree: Tree) -> Sharing:
        """Take a tree's partitions, which are nested.

        Args:
            tree: a tree in which no task leaves the trunk early.

        Returns:
            the same as a sharing.

        Raises:
            TreeError: a task leaves the trunk early.
        """
        if tree.depths:
            raise TreeError(f"{', '.join(tree.depths)} leave the trunk early; expected tasks that pass every stage")
        return cls(tree.tasks, tree.partitions)

    @property
    def depth(self) -> int:
        """Number of stages D."""
        return len(self.partitions)

    @property
    def widths(self) -> tuple[int, ...]:
        """For each stage its number of clusters."""
        return tuple(map(len, self.partitions))

    def cluster_of(self, task: str, stage: int) -> int:
        """Find a task.

        Args:
            task: its name.
            stage: the number of a stage.

        Returns:
            the number of its cluster there, in the order of `partitions`.

        Raises:
            TreeError: an unknown task.
        """
        if task not in self.tasks:
            raise TreeError(f"unknown task {task!r}; expected one of {', '.join(self.tasks)}")
        return next(k for k, cluster in enumerate(self.partitions[stage]) if task in cluster)

    def __str__(self) -> str:
        counted = f"{len(self.tasks)} tasks, {self.depth} stages, {sum(self.widths)} nodes, not nested"
        rows = [" | ".join(", ".join(map(visible, cluster)) for cluster in stage) for stage in self.partitions]
        return "\n".join([counted, *(f"stage {d}: {row}" for d, row in enumerate(rows))])


def _partition(tasks: tuple[str, ...], stage: int, groups: Iterable[Iterable[str]]) -> tuple[Cluster, ...]:
    clusters = [[groups] if isinstance(groups, str) else list(group) for group in groups]
    found = [task for cluster in clusters for task in cluster]
    if sorted(found) != sorted(tasks) or not all(clusters):
        raise TreeError(f"stage {stage} has {clusters}; expected every one of {', '.join(tasks)} in one group")
    place = {task: number for number, task in enumerate(tasks)}
    ordered = [tuple(sorted(cluster, key=place.__getitem__)) for cluster in clusters]
    return tuple(sorted(ordered, key=lambda cluster: place[cluster[0]]))
