"""Losses of clusters of tasks, added over clusters and stages: an objective applied to the numbers of a tensor.

`cost(tree) = sum over stages d of scale_d(k_d) * sum over clusters c of value_d(c)`, with k_d the number of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.search_result import Verdict
from branchnet.clustering.stitching.poor_pairs import PoorPairs, poor_pairs, surcharge
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import TreeError

Floats = npt.NDArray[np.float64]
RELATIVE_TIE = 1e-9
Members = Sequence[int]
Value = Callable[[Floats], float]


@dataclass(frozen=True, eq=False)
class StageLosses:
    """An objective applied to a tensor: what the solvers work on.

    Attributes:
        tasks: N names.
        pairs: (D, N, N) loss of each pair, weights and surcharges included, zeros on the diagonal; symmetric, but for
            the kind `"medoid"`, where the row is the representative's.
        kind: see `Objective.kind`.
        averaged: see `Objective.averaged`.
        divisor: constant that every stage is divided by.
        offset: constant that is added to every tree's cost.
        name: name of the objective.
        largest: the largest loss that a pair can have, which decides what is a tie; None = the largest in `pairs`.
        poor: pairs of stitching losses that are shared only where the budget forces it; None where there are none.
        surcharge: what each of them adds in `pairs`.
        without: the losses without surcharges; None where there are none.
    """

    tasks: tuple[str, ...]
    pairs: Floats
    kind: str
    averaged: bool
    divisor: float = 1.0
    offset: float = 0.0
    name: str = "given"
    largest: float | None = None
    poor: PoorPairs | None = None
    surcharge: float = 0.0
    without: StageLosses | None = None

    @property
    def depth(self) -> int:
        """Number of stages D."""
        return len(self.pairs)

    @property
    def tie(self) -> float:
        """Costs of trees that differ by no more than this are equal: 1e-9 of the largest loss of a pair."""
        largest = float(np.abs(self.pairs).max(initial=0.0)) if self.largest is None else self.largest
        return RELATIVE_TIE * largest / self.divisor

    def scale(self, width: int) -> float:
        """Factor of the sum of cluster values of a stage.

        Args:
            width: its number of clusters.

        Returns:
            The factor.
        """
        return 1.0 / (self.divisor * width) if self.averaged else 1.0 / self.divisor

    def cluster_value(self, stage: int, members: Members) -> float:
        """Value of one cluster; exactly rounded, so it does not depend on the order of the tasks.

        Args:
            stage: number of the stage.
            members: numbers of its tasks.

        Returns:
            The value; 0 for a single task.
        """
        index = np.fromiter(members, dtype=np.intp)
        return _VALUES[self.kind](self.pairs[stage][np.ix_(index, index)]) if len(index) > 1 else 0.0

    def stage_cost(self, stage: int, clusters: Iterable[Members]) -> float:
        """Cost of one stage's partition.

        Args:
            stage: number of the stage.
            clusters: numbers of the tasks of each cluster.

        Returns:
            The stage's term of a tree's cost.
        """
        values = [self.cluster_value(stage, cluster) for cluster in clusters]
        total = math.fsum(values) / self.divisor
        return total / len(values) if self.averaged else total

    def tree_cost(self, tree: Tree) -> float:
        """Cost of a tree.

        Args:
            tree: a tree of the same tasks and depth.

        Returns:
            The sum over stages, and the offset.

        Raises:
            TreeError: other tasks or another depth.
        """
        tree.check_tasks(self.tasks)
        if tree.depth != self.depth:
            raise TreeError(f"the tree has {tree.depth} stages; expected {self.depth}, as the affinities have")
        index = {task: number for number, task in enumerate(self.tasks)}
        stages = [
            self.stage_cost(stage, [[index[task] for task in cluster] for cluster in clusters])
            for stage, clusters in enumerate(tree.partitions)
        ]
        return math.fsum([*stages, self.offset])

    def sparing(self, affinity: Affinity) -> StageLosses:
        """The same with a surcharge on poor pairs, for the objective `medoid`, whose terms are losses of tasks.

        Args:
            affinity: what these losses were made of.

        Returns:
            Itself where no pair is poor.
        """
        adds_up = self.kind == "medoid" and not self.averaged and self.divisor == 1.0
        poor = poor_pairs(affinity, self.pairs) if adds_up else None
        if poor is None:
            return self
        extra = surcharge(self.pairs)
        return replace(self, pairs=self.pairs + extra * poor.mask, poor=poor, surcharge=extra, without=self)

    @property
    def plain(self) -> StageLosses:
        """The same without surcharges."""
        return self.without or self

    def verdict(self, tree: Tree) -> Verdict:
        """Cost of a tree without surcharges, and the poor pairs in it.

        Args:
            tree: a tree of the same tasks and depth.

        Returns:
            The verdict.

        Raises:
            TreeError: other tasks or another depth.
        """
        cost = self.tree_cost(tree)
        if self.poor is None:
            return Verdict(cost)
        index = {task: number for number, task in enumerate(self.tasks)}
        served = [
            pair
            for stage, clusters in enumerate(tree.partitions)
            for cluster in clusters
            for pair in self._served(stage, [index[task] for task in cluster])
        ]
        forced = self.poor.named(served)
        plain = self.plain.pairs
        return Verdict(math.fsum(plain[pair] for pair in served), self.surcharge * len(forced), forced)

    def _served(self, stage: int, members: list[int]) -> list[tuple[int, int, int]]:
        """Stage, best representative and task of every other task of a cluster."""
        best = min(members, key=lambda a: math.fsum(self.pairs[stage, a, members]))
        return [(stage, best, task) for task in members if task != best]


def _largest(block: Floats) -> float:
    return float(block[np.triu_indices(len(block), 1)].max())


def _pair_sum(block: Floats) -> float:
    return math.fsum(block[np.triu_indices(len(block), 1)])


def _mean_to_others(block: Floats) -> float:
    return 2.0 * _pair_sum(block) / (len(block) - 1)


def _to_medoid(block: Floats) -> float:
    return min(math.fsum(row) for row in block)


_VALUES: dict[str, Value] = {"max": _largest, "sum": _pair_sum, "mean": _mean_to_others, "medoid": _to_medoid}
