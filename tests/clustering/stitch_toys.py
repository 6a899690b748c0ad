"""Random stitching losses, and the slow definitions that the stitching searches are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import Tree
from tests.clustering.toys import all_trees, names

Donors = tuple[tuple[int, ...], ...]
Changes = list[tuple[int, int, int]]


def stitch_affinity_of(losses: np.ndarray, measure: str = "stitch") -> Affinity:
    depth, n = losses.shape[:2]
    values = 1.0 - losses
    values[:, np.arange(n), np.arange(n)] = 1.0
    return Affinity(names(n), [f"stage{d}" for d in range(depth)], values, measure=measure, directed=True)


def random_losses(n: int, depth: int, seed: int, high: float = 0.8) -> np.ndarray:
    """Independent uniform losses, directed."""
    return np.random.default_rng(seed).uniform(0, high, (depth, n, n))


def stitch_like_losses(n: int, depth: int, seed: int) -> np.ndarray:
    """Losses that grow with depth and with the distance of tasks, with good and bad donors and easy and hard tasks."""
    generator = np.random.default_rng(seed)
    points, hard = generator.normal(size=(n, 4)), np.exp(0.3 * generator.normal(size=(2, n)))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    growth = (0.2 + 0.8 * (np.arange(depth) + 1) / depth)[:, None, None]
    losses = growth * 0.6 * distance / distance.mean() * hard[0][:, None] * hard[1]
    return np.clip(losses * generator.uniform(0.7, 1.3, (depth, n, n)), 0.0, 1.2)


@st.composite
def stitch_losses_drawn(draw: st.DrawFn, max_tasks: int = 4, max_depth: int = 3, high: float = 0.8) -> np.ndarray:
    """Random losses, and ones with few distinct values, where many trees tie."""
    n, depth = draw(st.integers(1, max_tasks)), draw(st.integers(1, max_depth))
    losses = random_losses(n, depth, draw(st.integers(0, 2**32 - 1)), high)
    return np.round(losses * 4) / 4 if draw(st.booleans()) else losses


def path_changes(tree: Tree, donors: Donors) -> Changes:
    """(stage, donor, task) of the last change of donor on every task's path, read from the root on."""
    changes = []
    for task, name in enumerate(tree.tasks):
        path = [donors[d][tree.cluster_of(name, d)] for d in range(tree.depth)] + [task]
        for stage in range(tree.depth):
            if path[stage] != path[stage + 1]:
                last = (stage, path[stage], task)
        if any(donor != task for donor in path):
            changes.append(last)
    return changes


@cache
def kept_assignments(tree: Tree) -> list[tuple[Donors, Changes]]:
    """Every choice of donors out of their clusters in which a donor keeps its branch, with its last changes."""
    return [(donors, path_changes(tree, donors)) for donors in _assignments(tree) if _keeps(tree, donors)]


def _assignments(tree: Tree) -> Iterator[Donors]:
    clusters = [[[tree.tasks.index(t) for t in c] for c in stage] for stage in tree.partitions]
    return product(*(list(product(*stage)) for stage in clusters))


def _keeps(tree: Tree, donors: Donors) -> bool:
    return all(
        donors[d - 1][tree.parents[d][k]] in (donor, -1)
        or tree.tasks[donors[d - 1][tree.parents[d][k]]] not in tree.partitions[d][k]
        for d in range(1, tree.depth)
        for k, donor in enumerate(donors[d])
    )


def tree_loss(tree: Tree, losses: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The least sum of losses at the last changes over all kept donors."""
    w = np.ones(losses.shape[1]) if weights is None else weights
    return min(sum(losses[c] * w[c[2]] for c in changes) for _, changes in kept_assignments(tree))


def brute_stitch(losses: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """For every tree of `all_trees` the fewest poor pairs and the least loss with so few, (T, 2)."""
    depth, n = losses.shape[:2]
    w = np.ones(n) if weights is None else weights
    found = []
    for tree in all_trees(n, depth):
        options = [
            (sum(losses[c] >= 0.9 and w[c[2]] > 0 for c in changes), sum(losses[c] * w[c[2]] for c in changes))
            for _, changes in kept_assignments(tree)
        ]
        found.append(min(options))
    return np.array(found)


def brute_stitch_sizes(n: int, costs: list[float], stitches: list[float] | None) -> np.ndarray:
    """Size of every tree: nodes one by one, and a stitch for every child and head but one of each node."""
    sizes = []
    for tree in all_trees(n, len(costs)):
        size = sum(costs[d] * len(stage) for d, stage in enumerate(tree.partitions))
        if stitches is not None:
            for d, stage in enumerate(tree.partitions):
                for number, cluster in enumerate(stage):
                    last = d + 1 == tree.depth
                    children = len(cluster) if last else sum(p == number for p in tree.parents[d + 1])
                    size += stitches[d] * (children - 1)
        sizes.append(size)
    return np.array(sizes)
