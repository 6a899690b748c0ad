"""Trees under budgets of which some are for some of the tasks, for the local search.

What a limit counts of a stage is the number of clusters that have a task of it. It follows for every move from whether
the clusters, the sets that move and what they leave behind have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.width_knapsack import best_widths
from branchnet.clustering.budgets.task_limits import TaskLimit
from branchnet.clustering.constraints import Rules
from branchnet.clustering.heuristics.initial_trees import (
    agglomerative_chain,
    chain_costs,
    coarsest_tree,
    with_rules,
)
from branchnet.clustering.heuristics.local_search import Labels, Landscape, Moves, membership, renumber

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SubsetLandscape(Landscape):
    """The same with limits for some of the tasks; `sizes` are 0 and a tree's size is its largest share of a limit.

    Attributes:
        counted: (limits, N), which tasks count.
        tables: (limits, D, N + 1), the share of the limit that so many clusters of a stage take.
    """

    counted: Bools = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    tables: Floats = field(default_factory=lambda: np.zeros((0, 0, 0)))

    def size(self, labels: Labels) -> float:
        """The largest share of a limit."""
        return float(self._totals(self.touched(labels)).max())

    def touched(self, labels: Labels) -> Ints:
        """How many clusters have a task that counts, (limits, D)."""
        stages = [(membership(row).astype(np.int64) @ self.counted.T > 0).sum(axis=0) for row in labels]
        return np.array(stages).T

    def _totals(self, touched: Ints) -> Floats:
        """Shares of the limits, (limits, ...), of numbers of clusters (limits, D, ...)."""
        return np.asarray(self._shares(touched).sum(axis=1))

    def _shares(self, touched: Ints) -> Floats:
        ends = (1,) * (touched.ndim - 2)
        limits = np.arange(touched.shape[0]).reshape(-1, 1, *ends)
        stages = np.arange(touched.shape[1]).reshape(1, -1, *ends)
        return self.tables[limits, stages, touched]

    def sized(self, labels: Labels, moves: Moves) -> Moves:
        """The moves with the largest share of a limit after each of them as its size."""
        depth = len(labels)
        stages = [self._stage_moves(labels[d], moves.sets, moves.first <= d) for d in range(depth)]
        alone = np.array([self.tables[:, d][np.arange(len(self.tables))[:, None], stages[d][1]] for d in range(depth)])
        rest = np.concatenate([np.cumsum(alone[::-1], axis=0)[::-1], np.zeros_like(alone[:1])])
        sizes = [rest[0].max(axis=0)[:, None]]
        joined = np.zeros((len(self.tables), len(moves.sets), 1))
        parents = np.zeros(int(labels[0].max()) + 1, np.int64)
        for t in range(1, depth + 1):
            shares = self.tables[:, t - 1][np.arange(len(self.tables))[:, None, None], stages[t - 1][0]]
            joined = joined[..., parents] + shares
            sizes.append((joined + rest[t][..., None]).max(axis=0))
            if t < depth:
                _, representative = np.unique(labels[t], return_index=True)
                parents = labels[t - 1][representative]
        return replace(moves, sizes=sizes)

    def _stage_moves(self, row: Ints, sets: Bools, whole: Bools) -> tuple[Ints, Ints]:
        """Clusters that count after every set joined each cluster, (limits, M, K), and was left alone, (limits, M)."""
        clusters, inside = membership(row), sets.astype(np.int64)
        home = row[sets.argmax(axis=1)]
        own = (self.counted.astype(np.int64) @ inside.T) > 0
        has = (self.counted.astype(np.int64) @ clusters.T.astype(np.int64)) > 0
        left = (self.counted.astype(np.int64) @ (clusters[home] & ~sets).T.astype(np.int64)) > 0
        touches = inside @ clusters.T.astype(np.int64) > 0
        total = has.sum(axis=1)[:, None]
        # A set that fills whole clusters takes all of them along, another one leaves the rest of its home.
        filled = has.astype(np.int64) @ touches.T.astype(np.int64)
        without = total - np.where(whole, filled, has[:, home].astype(np.int64) - left)
        joined = without[..., None] - has[:, None, :] + (has[:, None, :] | own[..., None])
        stay = touches & ~whole[:, None]
        joined = np.where(stay, total[..., None], joined)
        alone = np.where(whole, total, without + own)
        return np.clip(joined, 0, len(row)), np.clip(alone, 0, len(row))

    def fitting_swaps(self, labels: Labels) -> Bools:
        """Which exchanges of two tasks keep to the limits, (N, N)."""
        n = labels.shape[1]
        total = np.zeros((len(self.tables), n, n))
        one = self.counted.astype(np.int64)
        change = one[:, None, :] - one[:, :, None]  # what the cluster of i gains when j takes its place
        for d, row in enumerate(labels):
            counts = one @ membership(row).T.astype(np.int64)
            here = counts[:, row]
            before = (here > 0).astype(np.int64)
            after_i, after_j = here[:, :, None] + change > 0, here[:, None, :] - change > 0
            touched = (counts > 0).sum(axis=1)[:, None, None] - before[:, :, None] - before[:, None, :]
            touched = touched + after_i + after_j
            touched = np.where(row[:, None] == row[None], (counts > 0).sum(axis=1)[:, None, None], touched)
            total += self.tables[:, d][np.arange(len(one))[:, None, None], touched]
        return np.asarray((total <= self.limit * (1 + 1e-12)).all(axis=0))


def subset_landscape(losses: StageLosses, rules: Rules, limits: Sequence[TaskLimit]) -> SubsetLandscape:
    """The trees of an objective under limits, at least one."""
    n = len(losses.tasks)
    counted = np.zeros((len(limits), n), np.bool_)
    for number, one in enumerate(limits):
        counted[number, list(one.members)] = True
    tables = np.array([one.shares() for one in limits])
    return SubsetLandscape(losses, rules, np.zeros((losses.depth, n + 1)), 1.0, None, counted, tables)


def subset_starts(land: SubsetLandscape) -> list[Labels]:
    """Trees to start from that meet all limits: the smallest ones, and those cut from chains.

    In some chains the tasks of a limit are merged first, or all others before them.
    """
    coarse = [labels for labels in _coarse_trees(land) if _allowed(land.rules, labels)]
    chains: dict[bytes, Labels] = {}
    for pairs in _distances(land):
        ruled = with_rules(pairs, land.rules)
        for linkage in ("complete", "average"):
            chain = agglomerative_chain(ruled, linkage)
            chains[chain.tobytes()] = chain
    cut = [labels for chain in chains.values() for labels in _cut(land, chain)]
    return [labels for labels in (*coarse, *cut) if land.size(labels) <= land.limit * (1 + 1e-12)]


def _allowed(rules: Rules, labels: Labels) -> bool:
    return all(rules.allows(d, row.tolist()) for d, row in enumerate(labels))


def _cut(land: SubsetLandscape, chain: Labels) -> Iterator[Labels]:
    """The best trees of a chain whose largest share of a limit fits, or the mean of their shares."""
    costs = chain_costs(chain, land.losses, land.rules)
    touched = land.touched(chain)  # (limits, N): a chain is read as a tree of N stages
    columns = np.broadcast_to(touched[:, None], (*land.tables.shape[:2], len(chain)))
    shares = np.pad(np.take_along_axis(land.tables, columns, axis=2), ((0, 0), (0, 0), (1, 0)))
    for table in (shares.max(axis=0), shares.mean(axis=0))[: len(shares)]:
        widths = best_widths(costs, table, 1.0)
        if widths is not None:
            yield np.array([chain[width - 1] for width in widths])


def _coarse_trees(land: SubsetLandscape) -> Iterator[Labels]:
    """Trees with few clusters: tasks are placed in their order, and those of each limit first."""
    n, rules = len(land.losses.tasks), land.rules
    for order in [np.arange(n), *(np.argsort(~row, kind="stable") for row in land.counted)]:
        index = np.ix_(np.arange(len(rules.apart)), order, order)
        labels = coarsest_tree(replace(rules, together=rules.together[index], apart=rules.apart[index]))
        placed = np.empty_like(labels)
        placed[:, order] = labels
        yield renumber(placed)


def _distances(land: SubsetLandscape) -> Iterator[Floats]:
    pairs = land.losses.pairs
    pairs = (pairs + pairs.transpose(0, 2, 1)) / 2
    mixture, near = pairs.mean(axis=0), 2.0 * (1.0 + float(np.abs(pairs).max(initial=0.0)))
    yield from (mixture, pairs[-1], pairs[0])
    every = np.zeros_like(mixture, dtype=np.bool_)
    for row in land.counted:
        inside = row[:, None] & row[None]
        every |= inside
        yield mixture - near * inside
        # The others join the first of these tasks, so that a chain has every number of clusters of them.
        hub = ~row | (np.arange(len(row)) == int(row.argmax()))
        yield mixture - near * (hub[:, None] & hub[None])
    yield mixture - near * every
