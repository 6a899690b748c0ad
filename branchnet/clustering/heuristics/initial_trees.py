"""Trees to start from: chains of partitions, from one cluster to N, cut at the best widths for every stage.

Chains come from agglomerative clustering by complete and by average linkage and from peeling off the farthest task,
each on the mean loss over stages, on that of the last stage and on that of the first. A chain holds one partition for
each number of clusters, each refining the one before; so any non-decreasing choice of widths from it is a tree, and the
best choice is a small dynamic programme.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.width_knapsack import best_widths
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def start_trees(losses: StageLosses, rules: Rules, sizes: Floats, limit: float) -> Iterator[Labels]:
    """Feasible trees, (D, N) cluster numbers, from several chains; chains that hold none are left out."""
    # The smallest tree first: wherever any tree fits, so does it, and the search has a place to start.
    smallest = smallest_tree(rules, sizes)
    if _fits(smallest, rules, sizes, limit):
        yield smallest
    for chain in _chains(losses, rules):
        labels = cut_chain(chain, losses, rules, sizes, limit)
        if labels is not None:
            yield labels


def _fits(labels: Labels, rules: Rules, sizes: Floats, limit: float) -> bool:
    size = sum(float(row[labels[d].max() + 1]) for d, row in enumerate(sizes))
    return size <= limit * (1 + 1e-12) and all(rules.allows(d, row.tolist()) for d, row in enumerate(labels))


def cut_chain(chain: Labels, losses: StageLosses, rules: Rules, sizes: Floats, limit: float) -> Labels | None:
    """The best tree whose partitions all come from `chain`, (N, N), row k - 1 with k clusters; None if none fits."""
    widths = best_widths(chain_costs(chain, losses, rules), sizes, limit)
    return None if widths is None else np.array([chain[width - 1] for width in widths])


def chain_costs(chain: Labels, losses: StageLosses, rules: Rules) -> Floats:
    """(D, N + 1) cost of every stage at the partitions of a chain; inf where the rules do not allow one."""
    n = len(losses.tasks)
    table = np.full((losses.depth, n + 1), np.inf)
    for k in range(1, n + 1):
        labels = chain[k - 1]
        clusters = [np.flatnonzero(labels == c) for c in range(k)]
        for stage in range(losses.depth):
            if rules.allows(stage, labels):
                table[stage, k] = quick_stage_cost(losses, stage, clusters)
    return table


def quick_stage_cost(losses: StageLosses, stage: int, clusters: list[npt.NDArray[np.intp]]) -> float:
    """Cost of a stage in plain floating point."""
    pairs = losses.pairs[stage]
    total = sum(_quick_value(pairs[np.ix_(c, c)], losses.kind) for c in clusters if len(c) > 1)
    return float(total) * losses.scale(len(clusters))


def _quick_value(block: Floats, kind: str) -> float:
    if kind == "max":
        return float(block[~np.eye(len(block), dtype=np.bool_)].max())
    if kind == "medoid":
        return float(block.sum(axis=1).min())
    return float(block.sum()) / (2.0 if kind == "sum" else len(block) - 1)


def _chains(losses: StageLosses, rules: Rules) -> Iterator[Labels]:
    """Agglomerative chains by several linkages, and the divisive one that peels off the farthest task."""
    for mixture in (losses.pairs.mean(axis=0), losses.pairs[-1], losses.pairs[0]):
        ruled = with_rules((mixture + mixture.T) / 2, rules)  # losses may be directed, distances are not
        for linkage in ("complete", "average"):
            yield agglomerative_chain(ruled, linkage)
        yield peeling_chain(ruled)


def with_rules(pairs: Floats, rules: Rules) -> Floats:
    """Losses at which pairs that must share every stage are merged first, and pairs that may not share one last."""
    always, ever_apart = np.logical_and.reduce(rules.together), np.logical_or.reduce(rules.apart)
    far = 10.0 * (1.0 + float(np.abs(pairs).max(initial=0.0)))
    return np.where(always, -far, np.where(ever_apart, far, pairs))


def agglomerative_chain(pairs: Floats, linkage: str) -> Labels:
    """Merge the two closest clusters until one is left; `linkage` is `"complete"` or `"average"`."""
    n = len(pairs)
    chain = np.empty((n, n), np.int64)
    distance = pairs + np.where(np.eye(n, dtype=np.bool_), np.inf, 0.0)
    cluster, sizes = np.arange(n), np.ones(n)
    for k in range(n, 0, -1):
        chain[k - 1] = np.unique(cluster, return_inverse=True)[1]
        if k == 1:
            break
        a, b = sorted(divmod(int(distance.argmin()), n))
        if linkage == "complete":
            row = np.maximum(distance[a], distance[b])
        else:
            row = (sizes[a] * distance[a] + sizes[b] * distance[b]) / (sizes[a] + sizes[b])
        distance[a] = distance[:, a] = row
        distance[a, a] = np.inf
        distance[b] = distance[:, b] = np.inf
        cluster[cluster == b] = a
        sizes[a] += sizes[b]
    return chain


def peeling_chain(pairs: Floats) -> Labels:
    """Split off, one after the other, the task that is farthest from the rest of one shrinking cluster."""
    n = len(pairs)
    chain = np.zeros((n, n), np.int64)
    inside = np.ones(n, np.bool_)
    for k in range(2, n + 1):
        rest = np.flatnonzero(inside)
        block = pairs[np.ix_(rest, rest)] - np.where(np.eye(len(rest), dtype=np.bool_), np.inf, 0.0)
        # The largest loss first, ties by the sum of all: lexsort takes its last key first.
        order = np.lexsort((-block.sum(axis=1, where=np.isfinite(block)), -block.max(axis=1)))
        inside[rest[order[0]]] = False
        chain[k - 1] = chain[k - 2]
        chain[k - 1, rest[order[0]]] = k - 1
    return chain


def smallest_tree(rules: Rules, sizes: Floats) -> Labels:
    """A small tree that meets the rules: with few clusters, or, if more of them may be smaller, cut from a chain."""
    coarse = coarsest_tree(rules)
    if (np.diff(sizes[:, 1:], axis=1) >= 0).all():
        return coarse
    n = sizes.shape[1] - 1
    # Measured latencies need not grow with the width, so fewer clusters are not always smaller.
    chain = agglomerative_chain(with_rules(np.zeros((n, n)), rules), "complete")
    allowed = [[False, *(rules.allows(d, labels.tolist()) for labels in chain)] for d in range(len(sizes))]
    widths = best_widths(np.where(allowed, sizes, np.inf), np.zeros_like(sizes), 1.0)
    trees = [coarse] if widths is None else [coarse, np.array([chain[width - 1] for width in widths])]
    return min(trees, key=lambda labels: sum(float(row[labels[d].max() + 1]) for d, row in enumerate(sizes)))


def coarsest_tree(rules: Rules) -> Labels:
    """A tree with few clusters that meets the rules: every stage splits only what must be apart."""
    depth, n = rules.apart.shape[:2]
    labels = np.zeros((depth, n), np.int64)
    above = np.zeros(n, np.int64)
    for stage in range(depth):
        bins: list[tuple[int, npt.NDArray[np.bool_]]] = []
        placed = np.full(n, -1)
        for task in range(n):
            if placed[task] >= 0:
                continue
            group = rules.together[stage, task]
            barred = rules.apart[stage][group].any(axis=0)
            for number, (parent, members) in enumerate(bins):
                if parent == above[task] and not (members & barred).any():
                    members |= group
                    placed[group] = number
                    break
            else:
                placed[group] = len(bins)
                bins.append((int(above[task]), group.copy()))
        labels[stage] = above = placed
    return labels
