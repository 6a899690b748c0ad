"""For one stage the best partition of each width: over all subsets of few tasks, by local search for many.

Exactly: the least sum of values of k clusters of the tasks of a set is the least, over the clusters that hold the set's
first task, of the cluster's value and the least sum of k - 1 clusters of the rest. Only sets without the first task,
and the whole, are needed: 3^(N - 1) pairs of sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.constraints import Rules
from branchnet.clustering.deadline import Deadline, OutOfTime
from branchnet.clustering.exact.dynamic_program import cluster_values
from branchnet.clustering.heuristics.initial_trees import start_trees
from branchnet.clustering.heuristics.local_search import Landscape, descend

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StagePartitions:
    """The best partitions of one stage.

    Attributes:
        costs: (N + 1,) the stage's cost at each width; inf where no partition is known.
        labels: for each width the cluster numbers, (N,); None where no partition is known.
    """

    costs: Floats
    labels: tuple[Labels | None, ...]


def best_partitions(losses: StageLosses, rules: Rules, stage: int, deadline: Deadline) -> StagePartitions:
    """The partition of least cost for every width, for few tasks.

    Raises:
        OutOfTime: the deadline has passed.
    """
    n = len(losses.tasks)
    values = cluster_values(losses.pairs[stage], losses.kind)
    values[~rules.allowed_clusters(stage)] = np.inf
    least = np.full((n + 1, 1 << n), np.inf)
    least[0, 0] = 0.0
    chosen = np.zeros((n + 1, 1 << n), np.int64)
    for mask in [*range(2, 1 << n, 2), (1 << n) - 1]:
        first = mask & -mask
        rest = mask ^ first
        others = _subsets(rest)
        totals = least[:-1, rest ^ others] + values[others | first]
        best = totals.argmin(axis=1)
        least[1:, mask] = totals[np.arange(n), best]
        chosen[1:, mask] = others[best] | first
        deadline.step(0)
    whole = (1 << n) - 1
    widths = np.arange(n + 1)
    fine = (widths >= max(rules.min_width[stage], 1)) & (widths <= rules.max_width[stage])
    scale = np.array([1.0] + [losses.scale(k) for k in range(1, n + 1)])
    costs = scale * np.where(fine, least[:, whole], np.inf)
    labels = tuple(_traced(chosen, n, k) if np.isfinite(costs[k]) else None for k in range(n + 1))
    return StagePartitions(costs, labels)


def _subsets(mask: int) -> npt.NDArray[np.int64]:
    found = np.zeros(1, np.int64)
    while mask:
        bit = mask & -mask
        found = np.concatenate([found, found | bit])
        mask ^= bit
    return found


def _traced(chosen: npt.NDArray[np.int64], n: int, width: int) -> Labels:
    labels, mask = np.zeros(n, np.int64), (1 << n) - 1
    for number in range(width):
        cluster = int(chosen[width - number, mask])
        labels[[task for task in range(n) if cluster >> task & 1]] = number
        mask ^= cluster
    return labels


def good_partitions(losses: StageLosses, rules: Rules, stage: int, deadline: Deadline) -> StagePartitions:
    """Good partitions for every width, for many tasks; stopped at the deadline, those found so far."""
    n = len(losses.tasks)
    alone = replace(losses, pairs=losses.pairs[stage : stage + 1])
    own = Rules(
        rules.together[stage : stage + 1],
        rules.apart[stage : stage + 1],
        rules.min_width[stage : stage + 1],
        rules.max_width[stage : stage + 1],
    )
    sizes = np.arange(n + 1, dtype=np.float64)[None]
    costs = np.full(n + 1, np.inf)
    labels: list[Labels | None] = [None] * (n + 1)
    late = False
    for width in range(1, n + 1):
        land = Landscape(alone, own, sizes, float(width))
        found = min(start_trees(alone, own, sizes, float(width)), key=land.cost, default=None)
        if found is None:
            continue
        if not late:
            try:
                found = descend(land, found, deadline=deadline)[0]
            except OutOfTime:
                late = True
        k = int(found[0].max()) + 1
        if (cost := land.cost(found)) < costs[k]:
            costs[k], labels[k] = cost, found[0]
    return StagePartitions(costs, tuple(labels))
