"""The best donors of the nodes of a given tree, by a dynamic programme over it.

A donor keeps its branch: the child that serves a node's donor has the same donor. So every node has as many stitches
below it as children less one, and a task whose own weights begin at some node keeps them to its own head. Every other
task of a last node is fed by a stitch at its head.

What task t loses is decided where its path leaves the last foreign donor a, at location d: `pairs[d, a, t]`, or nothing
where the whole path is its own. With V(v, a) the least sum below node v of stage d with donor a,

    V(v, a) = sum over children u of: V(u, a) if a is in u, else min over b in u of pairs[d, a, b] + V(u, b),

and at the last stage the sum over the other tasks t of v of pairs[D - 1, a, t].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import TreeError

Floats = npt.NDArray[np.float64]
Change = tuple[int, int, int]
Cluster = tuple[int, ...]


@dataclass(frozen=True)
class KeptDonors:
    """Donors of a tree, as numbers of tasks.

    Attributes:
        donors: for each stage the donor of each node, in the order of `tree.partitions`.
        changes: (stage, donor, task) of every last change of donor, in the order of the tasks.
    """

    donors: tuple[tuple[int, ...], ...]
    changes: tuple[Change, ...]


def kept_donors(tree: Tree, tasks: Sequence[str], pairs: Floats, preferred: str | None = None) -> KeptDonors:
    """The donors of least loss; of equal ones the first in the order of `tasks`.

    Args:
        tree: which tasks share which stage.
        tasks: N names, the axes of `pairs`.
        pairs: (D, N, N), `[d, a, t]` what task t loses after location d on features of donor a.
        preferred: a task that is the donor of every node that serves it.

    Raises:
        TreeError: a tree of other tasks or of another depth.
    """
    tree.check_tasks(tasks)
    if tree.depth != len(pairs):
        raise TreeError(f"the tree has {tree.depth} stages; expected {len(pairs)}, as the affinities have")
    index = {task: number for number, task in enumerate(tasks)}
    nodes = [[tuple(index[task] for task in cluster) for cluster in stage] for stage in tree.partitions]
    favourite = -1 if preferred is None else index.get(preferred, -1)
    below = _values(tree, nodes, pairs)
    donors: list[tuple[int, ...]] = []
    for stage, clusters in enumerate(nodes):
        above = [donors[stage - 1][parent] if stage else -1 for parent in tree.parents[stage]]
        donors.append(
            tuple(
                _donor(cluster, kept, favourite, value, pairs[stage - 1])
                for cluster, kept, value in zip(clusters, above, below[stage], strict=True)
            )
        )
    return KeptDonors(tuple(donors), last_changes(tree, tasks, donors))


def last_changes(tree: Tree, tasks: Sequence[str], donors: Sequence[Sequence[int]]) -> tuple[Change, ...]:
    """Stage, donor and task of every last change of donor on the way to a task's own head."""
    changes = []
    for number, task in enumerate(tasks):
        path = [donors[d][tree.cluster_of(task, d)] for d in range(tree.depth)]
        foreign = [d for d, donor in enumerate(path) if donor != number]
        if foreign:
            changes.append((foreign[-1], path[foreign[-1]], number))
    return tuple(changes)


def _values(tree: Tree, nodes: list[list[Cluster]], pairs: Floats) -> list[list[dict[int, float]]]:
    """For each stage and node V(v, a) by donor a."""
    last = [{a: math.fsum(pairs[-1, a, t] for t in cluster if t != a) for a in cluster} for cluster in nodes[-1]]
    values = [last]
    for stage in range(tree.depth - 2, -1, -1):
        children: list[list[int]] = [[] for _ in nodes[stage]]
        for child, parent in enumerate(tree.parents[stage + 1]):
            children[parent].append(child)
        values.append(
            [
                {a: math.fsum(_below(a, values[-1][child], pairs[stage]) for child in own) for a in cluster}
                for cluster, own in zip(nodes[stage], children, strict=True)
            ]
        )
    return values[::-1]


def _below(donor: int, child: dict[int, float], pairs: Floats) -> float:
    """What the branch of a child loses at least, below a node with this donor."""
    return child[donor] if donor in child else min(float(pairs[donor, b]) + value for b, value in child.items())


def _donor(cluster: Cluster, kept: int, favourite: int, below: dict[int, float], pairs: Floats) -> int:
    if kept in cluster:
        return kept
    if favourite in cluster:
        return favourite
    return min(cluster, key=lambda b: (below[b] + (float(pairs[kept, b]) if kept >= 0 else 0.0), b))
