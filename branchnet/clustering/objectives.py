"""Objectives: how much a tree loses by sharing.

Every objective here is additive: `cost(tree) = sum over stages d of scale_d(k_d) * sum over clusters c of value_d(c)`,
where k_d is the number of clusters of stage d and `value_d(c)` looks only at the tasks of c. Solvers rely on that and
on nothing else; bounds also use whether values are monotone. With dissimilarity s = 1 - affinity:

- `mean-max` (Branched Multi-Task Networks, Vandenhende et al. 2020): the mean over clusters of the largest s in a
  cluster. Rewards splitting off single outliers, since each new singleton enlarges the number of clusters.
- `diameter-sum`: the sum instead of the mean: a new singleton is worth only what it removes.
- `mean-pair`: the mean over tasks of the mean s to the other tasks of their cluster: block sizes count. Rewards
  balanced, compact clusters.
- `sum-pair`: the sum of s over all pairs that share: one large block is expensive.
- `medoid`: the sum over tasks of s to the best representative of their cluster, as k-medoids has it.
- `gain`: the sum over pairs that share of (mean affinity of the tensor - affinity): sharing a pair that is better than
  the average gains, a worse pair loses; so it is not trivial without a budget.

A single task counts 0 everywhere. Stage weights multiply the stages' terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, TreeError

Floats = npt.NDArray[np.float64]
RELATIVE_TIE = 1e-9
Members = Sequence[int]
Value = Callable[[Floats], float]


@dataclass(frozen=True)
class Objective:
    """An additive objective, without the numbers of a stage.

    Attributes:
        name: its name.
        kind: how the loss of one cluster follows from the loss of its pairs: `"max"`, `"mean"` (the sum over its tasks
            of the mean loss to the others), `"sum"` or `"medoid"`.
        averaged: whether a stage's clusters are averaged (divided by their number) instead of summed.
        per_task: whether a stage's sum is divided by the number of tasks.
        centred: whether a pair's loss is measured from the mean affinity of the tensor instead of from 1.
    """

    name: str
    kind: str
    averaged: bool = False
    per_task: bool = False
    centred: bool = False

    def pair_losses(self, affinity: Affinity) -> Floats:
        """Loss of each pair at each stage.

        Args:
            affinity: values (D, N, N), symmetric, larger = better shared.

        Returns:
            (D, N, N), symmetric with zeros on the diagonal.

        Raises:
            AffinityError: values that are directed or not finite.
        """
        values = symmetric_values(affinity)
        reference = 1.0
        if self.centred and len(affinity.tasks) > 1:
            upper = np.triu_indices(len(affinity.tasks), 1)
            pairs = values[:, upper[0], upper[1]]
            # fsum is exactly rounded, so costs do not depend on the order of tasks.
            reference = math.fsum(pairs.ravel()) / pairs.size
        losses = reference - values
        diagonal = np.arange(len(affinity.tasks))
        losses[:, diagonal, diagonal] = 0.0
        return losses


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("mean-max", "max", averaged=True),
        Objective("diameter-sum", "max"),
        Objective("mean-pair", "mean", per_task=True),
        Objective("sum-pair", "sum"),
        Objective("medoid", "medoid"),
        Objective("gain", "sum", centred=True),
    )
}


@dataclass(frozen=True, eq=False)
class StageLosses:
    """An objective applied to a tensor: what the solvers work on.

    Attributes:
        tasks: N names.
        pairs: (D, N, N) symmetric loss of each pair, stage weights included, zeros on the diagonal.
        kind: see `Objective.kind`.
        averaged: see `Objective.averaged`.
        divisor: constant that every stage is divided by.
        offset: constant that is added to every tree's cost.
        name: name of the objective.
        largest: the largest loss that a pair can have, which decides what is a tie; None = the largest in `pairs`.
    """

    tasks: tuple[str, ...]
    pairs: Floats
    kind: str
    averaged: bool
    divisor: float = 1.0
    offset: float = 0.0
    name: str = "given"
    largest: float | None = None

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


def _largest(block: Floats) -> float:
    return float(block[np.triu_indices(len(block), 1)].max())


def _pair_sum(block: Floats) -> float:
    return math.fsum(block[np.triu_indices(len(block), 1)])


def _mean_to_others(block: Floats) -> float:
    return 2.0 * _pair_sum(block) / (len(block) - 1)


def _to_medoid(block: Floats) -> float:
    return min(math.fsum(row) for row in block)


_VALUES: dict[str, Value] = {"max": _largest, "sum": _pair_sum, "mean": _mean_to_others, "medoid": _to_medoid}


def symmetric_values(affinity: Affinity) -> Floats:
    """The tensor, checked to be finite and symmetric up to rounding.

    Raises:
        AffinityError: values that are not finite, or directed ones.
    """
    values = np.asarray(affinity.values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise AffinityError("the affinities are not all finite; expected no NaN and no infinity")
    # 1e-9 of the largest value: files and other libraries may round the two halves apart.
    gap = np.abs(values - values.transpose(0, 2, 1))
    if gap.max(initial=0.0) > 1e-9 * max(1.0, float(np.abs(values).max(initial=0.0))):
        d, i, j = (int(place) for place in np.unravel_index(int(gap.argmax()), gap.shape))
        raise AffinityError(
            f"the affinities of {affinity.tasks[i]!r} and {affinity.tasks[j]!r} at {affinity.locations[d]!r} differ by "
            f"direction ({values[d, i, j]:g} and {values[d, j, i]:g}); expected symmetric ones: pass "
            "affinity.symmetric(), the mean of both directions"
        )
    return (values + values.transpose(0, 2, 1)) / 2


def objective_named(objective: str | Objective) -> Objective:
    """The objective of that name.

    Raises:
        AffinityError: an unknown name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise AffinityError(f"unknown objective {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]


def stage_losses(
    affinity: Affinity | StageLosses,
    objective: str | Objective = "mean-max",
    stage_weights: Sequence[float] | None = None,
) -> StageLosses:
    """Apply an objective to a tensor.

    Args:
        affinity: values (D, N, N), larger = better shared; a StageLosses is returned unchanged.
        objective: a name in `OBJECTIVES`, or an Objective.
        stage_weights: D factors of the stages' terms; None = 1.

    Returns:
        What the solvers work on.

    Raises:
        AffinityError: directed, measured or non-finite affinities, an unknown objective, weights that do not fit.
    """
    if isinstance(affinity, StageLosses):
        return affinity
    chosen = objective_named(objective)
    if affinity.measure.startswith("measured"):
        raise AffinityError(
            "the affinities are measured changes of tasks, of which stages 0 to d together hold the gain: as "
            "similarities they rank trees wrongly, for a gain from sharing could not pay; expected the measurements: "
            "search(PairMeasurements.read(table), ...), or expected_losses(pairs)"
        )
    pairs = chosen.pair_losses(affinity)
    largest = affinity.largest_dissimilarity
    if stage_weights is not None:
        weights = _checked_weights(stage_weights, len(pairs))
        pairs = pairs * weights[:, None, None]
        largest *= float(weights.max())
    return StageLosses(
        tuple(affinity.tasks),
        pairs,
        chosen.kind,
        chosen.averaged,
        divisor=float(len(affinity.tasks)) if chosen.per_task else 1.0,
        name=chosen.name,
        largest=largest,
    )


def _checked_weights(weights: Sequence[float], depth: int) -> Floats:
    if isinstance(weights, str):
        raise AffinityError(
            f"stage_weights is {weights!r}, but an objective knows no costs; expected numbers: "
            f"stage_weights=stage_shares(costs, {weights!r})"
        )
    numbers = np.array(weights, dtype=np.float64)
    if numbers.shape != (depth,) or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise AffinityError(f"stage_weights is {list(weights)}; expected {depth} finite numbers, none negative")
    return numbers


def clustering_cost(
    tree: Tree,
    affinity: Affinity | StageLosses,
    *,
    objective: str | Objective = "mean-max",
    stage_weights: Sequence[float] | None = None,
) -> float:
    """Cost of a tree; `objective="mean-max"` is the one of Branched Multi-Task Networks (Vandenhende et al. 2020).

    Args:
        tree: a tree of the affinity's tasks, in any order, and of its depth.
        affinity: values (D, N, N), larger = better shared.
        objective: see this module.
        stage_weights: D factors of the stages' terms; None = 1.

    Returns:
        The cost; smaller is better, and 0 for separate networks (not for `"gain"`).

    Raises:
        AffinityError: directed affinities where symmetric ones are needed, an unknown objective.
        TreeError: other tasks or another depth.

    >>> values = np.array([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]])
    >>> affinity = branchnet.Affinity(["a", "b", "c"], ["only"], values)
    >>> shared = branchnet.Tree.shared(["a", "b", "c"], 1)
    >>> round(branchnet.clustering_cost(shared, affinity), 6)                         # the largest of 0.1, 0.8, 0.6
    0.8
    >>> round(branchnet.clustering_cost(shared, affinity, objective="sum-pair"), 6)   # 0.1 + 0.8 + 0.6
    1.5
    """
    return stage_losses(affinity, objective, stage_weights).tree_cost(tree)
