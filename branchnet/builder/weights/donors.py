"""Whose weights each node of a tree starts from: the donor rule, which needs no network to be applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from branchnet.clustering.stitching.kept_donors import kept_donors
from branchnet.clustering.stitching.task_weights import task_factors

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.clustering import Sharing, Tree

Donors = tuple[tuple[str, ...], ...]
"""For each stage the donor task of each node, in the order of `tree.partitions`."""


def choose_donors(tree: Tree, affinity: Affinity | None = None, *, preferred: str | None = None) -> Donors:
    """Name the donor task of every node, stage by stage, in the order of `tree.partitions`.

    A node keeps its parent's donor while that task is in its cluster; otherwise its donor is the cluster's medoid by
    affinity (the task with the largest sum of affinities to the others at that stage, the first of several), or
    without an affinity its first task. So a chain of nodes with one donor reproduces that donor exactly.
    A `preferred` task is the donor of every node that serves it, so its own outputs do not change at all.

    With a directed affinity of the measure `"stitch"`, donors choose themselves: nodes keep their parent's donor as
    above, and the others are those for which the sum over tasks of the loss at the last change of donor is least,
    each times the task's weight in `affinity.task_weights`.

    Args:
        tree: which tasks share which stage.
        affinity: values (D, N, N) that choose the medoids, or stitching losses.
        preferred: a task to prefer everywhere.

    Returns:
        for each stage the donors of its nodes.

    Raises:
        TreeError: with stitching losses, a tree of other tasks or of another depth.
    """
    if affinity is not None and affinity.directed and affinity.measure.startswith("stitch"):
        factors = task_factors(affinity.task_weights, affinity.tasks)
        found = kept_donors(tree, affinity.tasks, (1.0 - affinity.values) * factors, preferred)
        return tuple(tuple(affinity.tasks[donor] for donor in stage) for stage in found.donors)
    donors: list[tuple[str, ...]] = []
    for stage, clusters in enumerate(tree.partitions):
        inherited = [donors[stage - 1][parent] if stage else "" for parent in tree.parents[stage]]
        donors.append(
            tuple(
                preferred if preferred in cluster else donor if donor in cluster else _medoid(stage, cluster, affinity)
                for donor, cluster in zip(inherited, clusters, strict=True)
            )
        )
    return tuple(donors)


def sharing_donors(sharing: Sharing, affinity: Affinity | None = None) -> Donors:
    """Name the donor of every node of a sharing that is not nested: the cluster's medoid, stage by stage.

    Args:
        sharing: which tasks share which stage.
        affinity: values (D, N, N) that choose the medoids; without one the first tasks are taken.

    Returns:
        for each stage the donors of its nodes.
    """
    return tuple(
        tuple(_medoid(stage, cluster, affinity) for cluster in clusters)
        for stage, clusters in enumerate(sharing.partitions)
    )


def _medoid(stage: int, cluster: Sequence[str], affinity: Affinity | None) -> str:
    if affinity is None:
        return cluster[0]
    members = [affinity.tasks.index(task) for task in cluster]
    closeness = affinity.values[stage][members][:, members].sum(axis=1)
    return cluster[int(closeness.argmax())]
