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
- `medoid`: the sum over tasks of s to the best representative of their cluster, as k-medoids has it. It takes directed
  affinities, too: `affinity[d, a, t]` is then how well representative (donor) a serves task t.
- `gain`: the sum over pairs that share of (mean affinity of the tensor - affinity): sharing a pair that is better than
  the average gains, a worse pair loses; so it is not trivial without a budget.
- `transfer`: the mean over tasks of minus the mean affinity from the other tasks of their cluster, as TAG estimates
  what a group does to its tasks (Fifty et al. 2021, section 3). For affinities in units of loss, which are above 0
  where sharing helps: without a budget it chooses between sharing and separation.

A single task counts 0 everywhere. Stage weights multiply the stages' terms.

One objective is no sum over clusters and has a room of its own, `stitching`: `stitch`, the sum over tasks of s where
their path last changes its donor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.stitching.stitch_losses import STITCH, stitch_losses
from branchnet.clustering.stitching.task_weights import task_factors
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError

Floats = npt.NDArray[np.float64]
DEFAULT_OBJECTIVE = "medoid"
"""What trees are judged by where nobody says it: on tables of all trees, each trained, RSA orders trees of equal size
at least as well by it as by `mean-pair` (docs/evidence.md)."""


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
        change: whether affinities are relative changes of a loss, so that a pair's loss is measured from 0.
    """

    name: str
    kind: str
    averaged: bool = False
    per_task: bool = False
    centred: bool = False
    change: bool = False

    def pair_losses(self, affinity: Affinity) -> Floats:
        """Loss of each pair at each stage.

        Args:
            affinity: values (D, N, N), larger = better shared; symmetric ones but for the kind `"medoid"`.

        Returns:
            (D, N, N), zeros on the diagonal; for `"medoid"` the row is the representative's.

        Raises:
            AffinityError: values that are directed where symmetric ones are needed, not finite, or in another unit
                than the objective's.
        """
        if self.change:
            _check_changes(affinity, self.name)
            affinity = affinity.symmetric() if affinity.directed else affinity  # both directions of a pair count
        values = affinity.values if self.kind == "medoid" else symmetric_values(affinity)
        reference = 0.0 if self.change else 1.0
        if self.centred and len(affinity.tasks) > 1:
            upper = np.triu_indices(len(affinity.tasks), 1)
            pairs = values[:, upper[0], upper[1]][affinity.both_pass[:, upper[0], upper[1]]]
            # fsum is exactly rounded, so costs do not depend on the order of tasks.
            reference = math.fsum(pairs) / pairs.size
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
TRANSFER = Objective("transfer", "mean", per_task=True, change=True)


CHANGES = ("look-ahead", "first-order")
"""How the measures begin whose affinities say by what share a loss falls."""


def _check_changes(affinity: Affinity, objective: str) -> None:
    if not affinity.measure.startswith(CHANGES):
        raise AffinityError(
            f"objective {objective!r} needs affinities in units of loss, above 0 where sharing helps, and these are "
            f"{affinity.measure!r}; expected those of gradient_affinity with method='lookahead' or 'first-order', or "
            "search(PairMeasurements...) for measured pairs"
        )


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
            "affinity.symmetric(), the mean of both directions, or objective='medoid' or 'stitch'"
        )
    return (values + values.transpose(0, 2, 1)) / 2


def objective_named(objective: str | Objective) -> Objective:
    """The objective of that name.

    Raises:
        AffinityError: an unknown name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective == STITCH:
        raise AffinityError(
            f"objective {objective!r} is no sum over clusters; expected it in search, pareto_front or clustering_cost, "
            f"or one of {', '.join(OBJECTIVES)}, {TRANSFER.name} here"
        )
    known = {**OBJECTIVES, TRANSFER.name: TRANSFER}
    if objective not in known:
        raise AffinityError(f"unknown objective {objective!r}; expected one of {', '.join(known)}, {STITCH}")
    return known[objective]


def stage_losses(
    affinity: Affinity | StageLosses,
    objective: str | Objective = "mean-max",
    stage_weights: Sequence[float] | None = None,
    task_weights: Mapping[str, float] | None = None,
) -> StageLosses:
    """Apply an objective to a tensor.

    Args:
        affinity: values (D, N, N), larger = better shared; a StageLosses is returned unchanged.
        objective: a name in `OBJECTIVES`, or an Objective.
        stage_weights: D factors of the stages' terms; None = 1.
        task_weights: `{task: weight}` of what tasks lose, for `"medoid"`; None = those of the affinity.

    Returns:
        What the solvers work on.

    Raises:
        AffinityError: directed, measured or non-finite affinities, an unknown objective, weights that do not fit.
    """
    if isinstance(affinity, StageLosses):
        if task_weights is not None:
            raise AffinityError("task_weights weigh similarities, and losses are given; expected task_weights=None")
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
    if task_weights is None and chosen.kind == "medoid":
        task_weights = affinity.task_weights
    if task_weights is not None:
        if chosen.kind != "medoid":
            raise AffinityError(
                f"task_weights weigh what each task loses, which {chosen.name!r} does not know; expected "
                "objective='medoid' or 'stitch'"
            )
        factors = task_factors(task_weights, affinity.tasks)
        pairs = pairs * factors
        largest *= float(factors.max())
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
    task_weights: Mapping[str, float] | None = None,
) -> float:
    """Cost of a tree; `objective="mean-max"` is the one of Branched Multi-Task Networks (Vandenhende et al. 2020).

    Args:
        tree: a tree of the affinity's tasks, in any order, and of its depth.
        affinity: values (D, N, N), larger = better shared.
        objective: see this module.
        stage_weights: D factors of the stages' terms; None = 1.
        task_weights: `{task: weight}` of what tasks lose, for `"medoid"` and `"stitch"`; None = those of the affinity.

    Returns:
        The cost; smaller is better, and 0 for separate networks. For `"stitch"` it is that of the donors of least loss,
        see `choose_donors`.

    Raises:
        AffinityError: directed affinities where symmetric ones are needed, an unknown objective, or weights that do not
            fit.
        TreeError: other tasks or another depth.

    >>> values = np.array([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]])
    >>> affinity = branchnet.Affinity(["a", "b", "c"], ["only"], values)
    >>> shared = branchnet.Tree.shared(["a", "b", "c"], 1)
    >>> round(branchnet.clustering_cost(shared, affinity), 6)                         # the largest of 0.1, 0.8, 0.6
    0.8
    >>> round(branchnet.clustering_cost(shared, affinity, objective="sum-pair"), 6)   # 0.1 + 0.8 + 0.6
    1.5
    """
    if objective == STITCH and isinstance(affinity, Affinity):
        if stage_weights is not None:
            raise no_stage_weights()
        return stitch_losses(affinity, task_weights).verdict(tree).cost
    return stage_losses(affinity, objective, stage_weights, task_weights).tree_cost(tree)


def no_stage_weights() -> AffinityError:
    """The error for stage weights where one loss of each task counts."""
    return AffinityError(
        "stage_weights weigh the terms of stages, and objective='stitch' has one term for each task; expected "
        "task_weights={task: weight}"
    )
