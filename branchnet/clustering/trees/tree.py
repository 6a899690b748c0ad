"""The tree of shared stages: for every stage a partition of the tasks, each refining the one before.

Conventions: stage 0 is nearest to the input and may already be split; a cluster of stage d is one node, one copy of
stage d's weights. Tasks inside a cluster stand in task order, clusters in the order of their first task.

A task may leave the trunk early, at its depth: it is alone from that stage on, its clusters there are no nodes and cost
nothing, and its head hangs off its last node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from branchnet.clustering.trees.tree_checks import (
    Partition,
    canonical,
    check_nesting,
    checked_depths,
    checked_tasks,
)
from branchnet.errors import TreeError

if TYPE_CHECKING:
    import networkx as nx

Labels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Tree:
    """Which tasks share which stages; immutable and canonical.

    Two trees are equal if they have the same tasks, the same clusters at every stage, in whatever order the tasks, the
    clusters or the tasks of a cluster were given, and tasks leave the trunk at the same depths.

    Attributes:
        tasks: N distinct task names.
        partitions: for each of D stages the clusters, each a tuple of task names.
        depths: how many stages the tasks pass that leave the trunk early, 1 to D - 1; other tasks pass all of them.

    Raises:
        TreeError: tasks that repeat or are empty, no stage, a stage that does not hold every task exactly once, a
            stage that joins tasks which an earlier stage has separated, or depths out of range or of tasks that are not
            alone from there on.

    >>> tree = branchnet.Tree(["depth", "normals", "scene"], [
    ...     [["depth", "normals", "scene"]],
    ...     [["depth", "normals"], ["scene"]],
    ... ])
    >>> tree.widths, tree.shared_depth("depth", "normals"), tree.shared_depth("depth", "scene")
    ((1, 2), 2, 1)
    >>> print(tree)
    3 tasks, 2 stages, 3 nodes
    stage 0: depth, normals, scene
    ├── stage 1: depth, normals
    └── stage 1: scene
    """

    tasks: tuple[str, ...]
    partitions: tuple[Partition, ...]
    depths: Mapping[str, int] = field(repr=False)

    def __init__(
        self,
        tasks: Iterable[str],
        partitions: Iterable[Iterable[Iterable[str]]],
        depths: Mapping[str, int] | None = None,
    ) -> None:
        names = checked_tasks(tasks)
        order = {task: index for index, task in enumerate(names)}
        stages = tuple(canonical(stage, clusters, order) for stage, clusters in enumerate(partitions))
        if not stages:
            raise TreeError("partitions is empty; expected at least one stage")
        check_nesting(stages)
        object.__setattr__(self, "tasks", names)
        object.__setattr__(self, "partitions", stages)
        object.__setattr__(self, "depths", checked_depths(depths or {}, names, stages))

    @classmethod
    def shared(cls, tasks: Iterable[str], depth: int, depths: Mapping[str, int] | None = None) -> Tree:
        """The tree in which all tasks share all stages that they pass.

        Args:
            tasks: N distinct names.
            depth: number of stages.
            depths: as for the class.

        Returns:
            The tree.

        Raises:
            TreeError: as the class.
        """
        names = tuple(tasks)
        own = depths or {}
        stages = [
            [[t for t in names if own.get(t, depth) > d], *([t] for t in names if own.get(t, depth) <= d)]
            for d in range(depth)
        ]
        return cls(names, [[cluster for cluster in stage if cluster] for stage in stages], depths)

    @classmethod
    def separate(cls, tasks: Iterable[str], depth: int, depths: Mapping[str, int] | None = None) -> Tree:
        """The tree of separate networks: no stage is shared.

        Args:
            tasks: N distinct names.
            depth: number of stages.
            depths: as for the class.

        Returns:
            The tree.

        Raises:
            TreeError: as the class.
        """
        names = tuple(tasks)
        return cls(names, [[[task] for task in names]] * depth, depths)

    @classmethod
    def grouped(cls, groups: Iterable[Iterable[str]], depth: int) -> Tree:
        """The tree of one whole network for each group of tasks.

        Args:
            groups: groups of tasks that do not overlap.
            depth: number of stages.

        Returns:
            The tree; its tasks stand in the order of the groups.

        Raises:
            TreeError: as the class.
        """
        clusters = [tuple(group) for group in groups]
        return cls([task for cluster in clusters for task in cluster], [clusters] * depth)

    @classmethod
    def from_labels(
        cls, tasks: Sequence[str], labels: Iterable[Sequence[int]], depths: Mapping[str, int] | None = None
    ) -> Tree:
        """Tree from cluster numbers: tasks i and j share stage d if `labels[d][i] == labels[d][j]`.

        Args:
            tasks: N distinct names.
            labels: for each stage the cluster number of each task.
            depths: as for the class.

        Returns:
            The tree.

        Raises:
            TreeError: as the class.
        """
        partitions = []
        for stage in labels:
            clusters: dict[int, list[str]] = {}
            for task, label in zip(tasks, stage, strict=True):
                clusters.setdefault(int(label), []).append(task)
            partitions.append(list(clusters.values()))
        return cls(tasks, partitions, depths)

    @property
    def depth(self) -> int:
        """Number of stages D."""
        return len(self.partitions)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of clusters of each stage, those of tasks that have left the trunk included; never decreasing."""
        return tuple(len(clusters) for clusters in self.partitions)

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """Number of nodes of each stage, copies of its weights, without the clusters that have left the trunk."""
        return tuple(
            sum(self.is_node(stage, number) for number in range(width)) for stage, width in enumerate(self.widths)
        )

    def is_node(self, stage: int, number: int) -> bool:
        """Whether a cluster has weights of its own.

        Args:
            stage: number of the stage.
            number: number of the cluster.

        Returns:
            False where it is that of a task that has left the trunk before.
        """
        return stage < self.depth_of(self.partitions[stage][number][0])

    def depth_of(self, task: str) -> int:
        """How many stages a task passes.

        Args:
            task: its name.

        Returns:
            1..D; D where it does not leave the trunk early.
        """
        return self.depths.get(task, self.depth)

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """For each stage d and cluster k the number of the cluster of stage d - 1 that holds it; -1 at stage 0."""
        above = [(-1,) * self.widths[0]]
        for coarse, fine in pairwise(self.partitions):
            home = {task: number for number, cluster in enumerate(coarse) for task in cluster}
            above.append(tuple(home[cluster[0]] for cluster in fine))
        return tuple(above)

    def labels(self, tasks: Sequence[str] | None = None) -> Labels:
        """The tree as numbers.

        Args:
            tasks: the tree's tasks in the order in which they are wanted; None = its own.

        Returns:
            For each stage the cluster number of each task, numbered by first appearance.

        Raises:
            TreeError: `tasks` are not the tree's tasks.
        """
        names = self.tasks if tasks is None else tuple(tasks)
        self.check_tasks(names)
        return tuple(_stage_labels(clusters, names) for clusters in self.partitions)

    def cluster_of(self, task: str, stage: int) -> int:
        """Find a task's cluster.

        Args:
            task: its name.
            stage: number of the stage.

        Returns:
            Number of the cluster of `stage` that serves it.

        Raises:
            TreeError: an unknown task.
        """
        for number, cluster in enumerate(self.partitions[stage]):
            if task in cluster:
                return number
        raise TreeError(f"unknown task {task!r}; expected one of {', '.join(self.tasks)}")

    def shared_depth(self, first: str, second: str) -> int:
        """Number of stages that two tasks share: their branch point.

        Args:
            first: a task.
            second: another task.

        Returns:
            0..D.

        Raises:
            TreeError: an unknown task.
        """
        return sum(self.cluster_of(first, d) == self.cluster_of(second, d) for d in range(self.depth))

    def distance(self, other: Tree) -> int:
        """How much two trees differ.

        Args:
            other: a tree of the same tasks and depth.

        Returns:
            Number of stage-pairs (a stage and two tasks) that are shared in exactly one of the two trees.

        Raises:
            TreeError: other tasks or another depth.
        """
        other.check_tasks(self.tasks)
        if other.depth != self.depth:
            raise TreeError(f"the other tree has {other.depth} stages; expected {self.depth}")
        return len(_shared_pairs(self) ^ _shared_pairs(other))

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse other tasks than the tree's.

        Args:
            tasks: names in any order.

        Raises:
            TreeError: they are not exactly the tree's tasks.
        """
        if len(tasks) != len(self.tasks) or set(tasks) != set(self.tasks):
            strange = sorted(set(tasks) ^ set(self.tasks)) or list(tasks)
            raise TreeError(f"expected the tree's tasks, {', '.join(self.tasks)}; these differ: {', '.join(strange)}")

    def to_networkx(self) -> nx.DiGraph:
        """The tree as a graph.

        Returns:
            Directed graph of the nodes `(stage, number)` with attributes `stage` and `tasks`.
        """
        from branchnet.clustering.trees.text_drawing import tree_graph

        return tree_graph(self)

    def to_dot(self) -> str:
        """The tree as a graph for Graphviz.

        Returns:
            Text in the DOT language.
        """
        from branchnet.clustering.trees.text_drawing import tree_dot

        return tree_dot(self)

    @cached_property
    def _key(self) -> tuple[frozenset[object], ...]:
        stages = [frozenset(frozenset(cluster) for cluster in clusters) for clusters in self.partitions]
        return (*stages, frozenset(self.depths.items()))

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Tree) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        from branchnet.clustering.trees.text_drawing import tree_text

        return tree_text(self)


def _stage_labels(clusters: Partition, names: Sequence[str]) -> tuple[int, ...]:
    home = {task: number for number, cluster in enumerate(clusters) for task in cluster}
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(home[task], len(seen)) for task in names)


def _shared_pairs(tree: Tree) -> set[tuple[int, frozenset[str]]]:
    return {
        (stage, frozenset((first, second)))
        for stage, clusters in enumerate(tree.partitions)
        for cluster in clusters
        for position, first in enumerate(cluster)
        for second in cluster[position + 1 :]
    }
