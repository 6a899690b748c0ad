"""Tasks divided into groups by losses that were estimated from measured groups."""

from __future__ import annotations

import math

from branchnet.clustering.grouping.group_estimates import GroupEstimates
from branchnet.clustering.grouping.network_selection import select_networks, task_sets
from branchnet.clustering.grouping.task_grouping import Grouping
from branchnet.clustering.tree_search import search
from branchnet.errors import BudgetError

_ALL_SETS = 12
"""So many tasks have 4,095 sets, of which a programme chooses."""


def group_by_estimates(estimates: GroupEstimates, max_groups: int, *, seed: int = 0) -> Grouping:
    """Find the groups of least total loss, single tasks included.

    Up to 12 tasks the best of all sets are chosen, measured ones by what was measured; groups may overlap, and each
    task is served by the one that is best for it. With more tasks they are divided by the estimates alone, exactly or
    by local search.

    Args:
        estimates: of the losses, see `estimate_groups`.
        max_groups: largest number of groups, at least 1.
        seed: of the local search.

    Returns:
        The groups; the score is the mean over tasks of the estimated loss by itself less that in its group.

    Raises:
        BudgetError: `max_groups` below 1.

    >>> from branchnet.clustering import estimate_groups, group_by_estimates
    >>> measured = [{"a": 1.0}, {"b": 1.0}, {"c": 1.0}]
    >>> measured += [{"a": 0.8, "b": 0.9}, {"a": 1.3, "c": 1.1}, {"b": 1.2, "c": 1.1}]
    >>> group_by_estimates(estimate_groups(measured), 2).served
    (('c',), ('a', 'b'))
    """
    if max_groups < 1:
        raise BudgetError(f"max_groups is {max_groups}; expected at least 1", smallest=1)
    tasks = estimates.tasks
    if len(tasks) <= _ALL_SETS:
        sets = task_sets(tasks)
        losses = estimates.losses_of(sets)
        found = select_networks(losses, [1.0] * len(sets), max_groups)
        groups = [sets[m] for m in found.networks]
        assignment = {task: found.networks.index(found.assignment[task]) for task in tasks}
        total = found.total_loss
    else:
        tree = search(estimates.stage_losses(), [1.0], max_groups, seed=seed).tree
        groups = list(tree.partitions[0])
        assignment = {task: number for number, group in enumerate(groups) for task in group}
        total = estimates.stage_losses().tree_cost(tree)
    score = (math.fsum(estimates.alone) - total) / len(tasks)
    return Grouping(tuple(map(frozenset, groups)), {task: assignment[task] for task in tasks}, score)
