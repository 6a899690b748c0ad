"""Local search over trees: every subtree may leave its place and join any other branch for any number of stages.

One family of moves covers moving, splitting, merging and re-grafting. S is a task, or the tasks of a node; `first` is
the first stage at which S forms clusters of its own. A move picks a node of stage t - 1 outside S, or none (t = 0):
at stages e < t the tasks of S join that node's ancestor of stage e (at stages e >= first whole clusters are merged into
it); at stages t <= e < first S becomes a cluster of its own; later stages stay as they are. All moves of all S are
priced at once with matrices of stage costs; swapping two tasks is tried when no such move helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.budgets.further_limits import of_widths
from branchnet.clustering.constraints import Rules
from branchnet.clustering.deadline import Deadline

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Landscape:
    """What trees cost, for the local search.

    Attributes:
        losses: the objective.
        rules: the constraints.
        sizes: (D, N + 1) size of every stage at every width.
        limit: largest size.
        shares: with several budgets, (budgets, D, N + 1) every stage's share of each limit; `sizes` are the largest of
            them then, and a tree's size is its largest share.
    """

    losses: StageLosses
    rules: Rules
    sizes: Floats
    limit: float
    shares: Floats | None = None

    def size(self, labels: Labels) -> float:
        """Size of a tree, heads not included."""
        if self.shares is not None:
            return of_widths(self.shares, [int(row.max()) + 1 for row in labels])
        return float(sum(self.sizes[d, row.max() + 1] for d, row in enumerate(labels)))

    def sized(self, labels: Labels, moves: Moves) -> Moves:
        """The moves with their sizes, where these do not follow from widths."""
        return moves

    def fitting_swaps(self, labels: Labels) -> Bools:
        """Which exchanges of two tasks keep to the budget, (N, N): all, as widths stay."""
        return np.ones((labels.shape[1],) * 2, np.bool_)

    def cost(self, labels: Labels) -> float:
        """Cost of a tree in plain floating point."""
        total = 0.0
        for d, row in enumerate(labels):
            total += self.stage_cost(d, row)
        return total

    def stage_cost(self, stage: int, row: npt.NDArray[np.int64]) -> float:
        """Cost of one stage's partition, given by cluster numbers, in plain floating point."""
        clusters = membership(row)
        return float(self.values(stage, clusters).sum()) * self.losses.scale(len(clusters))

    def values(self, stage: int, sets: Bools) -> Floats:
        """Value of each set of tasks, (M,), from memberships (M, N)."""
        pairs, kind = self.losses.pairs[stage], self.losses.kind
        if kind == "max":
            out = np.zeros(len(sets))
            for m in np.flatnonzero(sets.sum(axis=1) > 1):
                index = np.flatnonzero(sets[m])
                out[m] = pairs[index[:, None], index][np.triu_indices(len(index), 1)].max()
            return out
        if kind == "medoid":
            # Only a member represents its set, hence inf for the others.
            sums = np.where(sets.T, pairs @ sets.T, np.inf)
            return np.asarray(sums.min(axis=0))
        weights = sets.astype(float)
        return self._from_sum(_inner(weights, pairs), weights.sum(axis=1))

    def _from_sum(self, inner: Floats, size: Floats) -> Floats:
        return 2 * inner / np.maximum(size - 1, 1) if self.losses.kind == "mean" else inner

    def joined(self, stage: int, sets: Bools, clusters: Bools, set_values: Floats, cluster_values: Floats) -> Floats:
        """Value of every union of a set and a cluster, (M, K)."""
        pairs, kind = self.losses.pairs[stage], self.losses.kind
        if kind == "max":
            reach = np.stack([pairs[:, c].max(axis=1) for c in clusters], axis=1)
            rows, members = np.nonzero(sets)
            link = np.maximum.reduceat(reach[members], np.searchsorted(rows, np.arange(len(sets))), axis=0)
            # A single task has no pair, so its value of 0 is not a loss that a union with negative losses inherits.
            lone = (sets.sum(axis=1) == 1)[:, None], (clusters.sum(axis=1) == 1)[None]
            own = np.where(lone[0], -np.inf, set_values[:, None])
            theirs = np.where(lone[1], -np.inf, cluster_values[None])
            return np.asarray(np.maximum(link, np.maximum(own, theirs)))
        if kind == "medoid":
            return np.stack([self.values(stage, clusters | s) for s in sets])
        a, b = sets.astype(float), clusters.astype(float)
        total = _inner(a, pairs)[:, None] + _inner(b, pairs)[None] + a @ pairs @ b.T
        return self._from_sum(total, a.sum(axis=1)[:, None] + b.sum(axis=1)[None])

    def removed(self, stage: int, clusters: Bools, home: npt.NDArray[np.int64], sets: Bools, values: Floats) -> Floats:
        """Value of every set's cluster without the set, (M,); sets that fill their cluster count 0."""
        if self.losses.kind != "max":
            return self.values(stage, clusters[home] & ~sets)
        pairs = self.losses.pairs[stage]
        out = values[home]
        # A diameter stays as long as the two tasks that attain it stay, so only few clusters are looked at again.
        first, second = _farthest(pairs, clusters)
        rows = np.arange(len(sets))
        cut = sets[rows, first[home]] | sets[rows, second[home]]
        out[cut] = self.values(stage, clusters[home[cut]] & ~sets[cut])
        return out

    def with_one(self, stage: int, rest: npt.NDArray[np.bool_]) -> Floats:
        """Value of `rest` with each task added, (N,)."""
        pairs, kind = self.losses.pairs[stage], self.losses.kind
        if not rest.any():
            return np.zeros(len(rest))
        if kind == "medoid":
            return self.values(stage, rest[None] | np.eye(len(rest), dtype=np.bool_))
        value = float(self.values(stage, rest[None])[0])
        if kind == "max":
            reach = pairs[:, rest].max(axis=1)
            return np.asarray(np.maximum(reach, value) if rest.sum() > 1 else reach)
        inner = value * (rest.sum() - 1) / 2 if kind == "mean" else value
        return self._from_sum(inner + pairs[:, rest].sum(axis=1), np.full(len(rest), rest.sum() + 1.0))


def _inner(sets: Floats, pairs: Floats) -> Floats:
    """Sum of the pairs inside each set."""
    return np.asarray(np.einsum("mi,mi->m", sets @ pairs, sets) / 2)


def _farthest(pairs: Floats, clusters: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two tasks of each cluster with its largest loss; for a single task that task twice."""
    first, second = np.empty(len(clusters), np.int64), np.empty(len(clusters), np.int64)
    for k, cluster in enumerate(clusters):
        index = np.flatnonzero(cluster)
        block = pairs[index[:, None], index] - np.where(np.eye(len(index), dtype=np.bool_), np.inf, 0.0)
        a, b = divmod(int(block.argmax()), len(index))
        first[k], second[k] = index[a], index[b]
    return first, second


def membership(labels: npt.NDArray[np.int64]) -> Bools:
    """Clusters as rows of a boolean matrix, (K, N)."""
    return np.equal(labels[None, :], np.arange(int(labels.max()) + 1)[:, None])


def renumber(labels: Labels) -> Labels:
    """Number the clusters of every stage by first appearance."""
    out = np.empty_like(labels)
    for d, row in enumerate(labels):
        _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
        out[d] = np.argsort(np.argsort(first))[inverse]
    return out


@dataclass(frozen=True, eq=False)
class Moves:
    """All moves out of one tree.

    Attributes:
        sets: (M, N) the sets S.
        first: (M,) first stage at which S forms clusters of its own.
        costs: per t = 0..D, (M, K_{t-1}) cost of the tree after the move; inf where it is not allowed.
        sizes: the same for its size.
    """

    sets: Bools
    first: npt.NDArray[np.int64]
    costs: list[Floats]
    sizes: list[Floats]


def price_moves(land: Landscape, labels: Labels) -> Moves:
    """Cost and size of every tree that one move reaches."""
    depth = len(labels)
    sets, first = _movable(labels)
    stages = [_price_stage(land, labels[d], d, sets, first) for d in range(depth)]
    # A move joins stages before t and stays alone from t on: sums from the front of the one, from the back of the
    # other.
    alone_cost = np.cumsum([prices.alone_cost for prices in stages][::-1], axis=0)[::-1]
    alone_size = np.cumsum([prices.alone_size for prices in stages][::-1], axis=0)[::-1]
    costs, sizes = [alone_cost[0][:, None]], [alone_size[0][..., None]]
    joined_cost = joined_size = np.zeros((len(sets), 1))
    parents = np.zeros(int(labels[0].max()) + 1, np.int64)
    for t in range(1, depth + 1):
        joined_cost = joined_cost[:, parents] + stages[t - 1].join_cost
        joined_size = joined_size[..., parents] + stages[t - 1].join_size
        rest_cost = alone_cost[t][:, None] if t < depth else 0.0
        rest_size = alone_size[t][..., None] if t < depth else 0.0
        costs.append(joined_cost + rest_cost)
        sizes.append(joined_size + rest_size)
        if t < depth:
            _, representative = np.unique(labels[t], return_index=True)
            parents = labels[t - 1][representative]
    if land.shares is not None:
        sizes = [shares.max(axis=0) for shares in sizes]
    return land.sized(labels, Moves(sets, first, costs, sizes))


def _movable(labels: Labels) -> tuple[Bools, npt.NDArray[np.int64]]:
    """Every task and every node's tasks once, with the first stage at which it is a cluster of its own."""
    depth, n = labels.shape
    found: dict[bytes, tuple[Bools, int]] = {}
    for d, row in enumerate(labels):
        for cluster in membership(row):
            if not cluster.all():
                found.setdefault(cluster.tobytes(), (cluster, d))
    for cluster in np.eye(n, dtype=np.bool_):
        found.setdefault(cluster.tobytes(), (cluster, depth))
    sets, first = zip(*found.values(), strict=True)
    return np.array(sets), np.array(first, dtype=np.int64)


class StagePrices(NamedTuple):
    """What one stage costs after the moves of M sets; inf where a move breaks a rule.

    Attributes:
        join_cost: (M, K), after set m joined cluster k.
        join_size: (M, K), the same for the size; with several budgets (budgets, M, K).
        alone_cost: (M,), after set m was left alone.
        alone_size: (M,), the same for the size; with several budgets (budgets, M).
    """

    join_cost: Floats
    join_size: Floats
    alone_cost: Floats
    alone_size: Floats


def _price_stage(
    land: Landscape, row: npt.NDArray[np.int64], d: int, sets: Bools, first: npt.NDArray[np.int64]
) -> StagePrices:
    """Price every set joining each cluster of stage d, and every set left alone there.

    At a stage before `first`, a set lies in one cluster, its home, and is taken out of it. From `first` on it fills
    whole clusters: joining merges them into another one, and being alone changes nothing.
    """
    clusters = membership(row)
    values, own = land.values(d, clusters), land.values(d, sets)
    unions = land.joined(d, sets, clusters, own, values)
    whole = first <= d
    home = row[sets.argmax(axis=1)]
    rest = np.where(whole, 0.0, land.removed(d, clusters, home, sets, values))
    touches = (sets[:, None, :] & clusters[None]).any(axis=2)
    left_value = np.where(whole, touches @ values, values[home])
    left_count = np.where(whole, touches.sum(axis=1), 0)
    total, k = float(values.sum()), len(clusters)
    join_total = total - left_value[:, None] + rest[:, None] - values[None] + unions
    join_width = np.broadcast_to((k - left_count)[:, None], join_total.shape)
    stay = touches & ~whole[:, None]  # joining the home cluster again
    join_total = np.where(stay, total, join_total)
    alone_total = np.where(whole, total, total - left_value + rest + own)
    alone_width = np.where(whole, k, k + 1)
    forbidden_join, forbidden_alone = _forbidden(land.rules, d, sets, clusters, whole, stay)
    forbidden_join |= touches & whole[:, None]  # a cluster of the set itself
    forbidden_join |= join_width > land.rules.max_width[d]
    forbidden_alone |= alone_width > land.rules.max_width[d]
    return StagePrices(
        *_priced(land, d, join_total, join_width, forbidden_join),
        *_priced(land, d, alone_total, alone_width, forbidden_alone),
    )


def _priced(
    land: Landscape, d: int, totals: Floats, widths: npt.NDArray[np.int64], forbidden: Bools
) -> tuple[Floats, Floats]:
    """Cost and size of stage d from the sums of cluster values and the widths after moves."""
    n = land.sizes.shape[1] - 1
    scale = np.array([0.0] + [land.losses.scale(w) for w in range(1, n + 1)])
    widths = np.clip(widths, 1, n)  # only forbidden moves leave 1..N
    sizes = land.sizes[d][widths] if land.shares is None else land.shares[:, d][:, widths]
    return np.where(forbidden, np.inf, totals * scale[widths]), sizes


def _forbidden(rules: Rules, d: int, sets: Bools, clusters: Bools, whole: Bools, stay: Bools) -> tuple[Bools, Bools]:
    """Which joins and which separations break a rule of stage d."""
    a, b = sets.astype(np.int64), clusters.astype(np.int64)
    apart, together = rules.apart[d].astype(np.int64), rules.together[d].astype(np.int64)
    clash = (a @ apart @ b.T > 0) | (np.einsum("mi,mi->m", a @ apart, a) > 0)[:, None]
    partners = ((a @ together) > 0) & ~sets
    outside = partners.sum(axis=1)[:, None] - partners.astype(np.int64) @ b.T > 0
    alone = (partners.any(axis=1)) & ~whole
    return (clash | outside) & ~stay, alone


def apply_move(labels: Labels, moves: Moves, s: int, t: int, cluster: int) -> Labels:
    """The tree after set `s` joined `cluster` of stage t - 1."""
    moved = labels.copy()
    inside = moves.sets[s]
    representative = int(np.flatnonzero(labels[t - 1] == cluster)[0]) if t else -1
    for e in range(len(labels)):
        if e < t:
            moved[e, inside] = labels[e, representative]
        elif e < moves.first[s]:
            moved[e, inside] = labels[e].max() + 1
    return renumber(moved)


def descend(land: Landscape, labels: Labels, *, deadline: Deadline | None = None) -> tuple[Labels, float]:
    """Take the best feasible move until none lowers the cost (or, at equal cost, the size)."""
    cost, size, tie = land.cost(labels), land.size(labels), land.losses.tie
    lowest = cost
    while True:
        if deadline is not None:
            deadline.step(0)
        moves = price_moves(land, labels)
        best = _best_move(moves, land.limit, tie)
        # A smaller tree may cost a tie more than the cheapest one so far, not than the last one: ties do not add up.
        smaller = best is not None and best[0] <= lowest + tie and best[1] < size * (1 - 1e-9)
        if best is None or not (best[0] < cost - tie or smaller):
            swapped = best_swap(land, labels)
            if swapped is None:
                break
            labels = swapped
        else:
            labels = apply_move(labels, moves, *best[2])
        cost, size = land.cost(labels), land.size(labels)
        lowest = min(lowest, cost)
    return labels, cost


def _best_move(moves: Moves, limit: float, tie: float) -> tuple[float, float, tuple[int, int, int]] | None:
    """The move of least cost, of those that tie with it the one to the smallest tree: cost, size, (set, t, cluster)."""
    allowed = [
        np.where(sizes <= limit * (1 + 1e-12), costs, np.inf)
        for costs, sizes in zip(moves.costs, moves.sizes, strict=True)
    ]
    least = min(float(costs.min()) for costs in allowed)
    if not np.isfinite(least):
        return None
    best = None
    for t, (costs, sizes) in enumerate(zip(allowed, moves.sizes, strict=True)):
        tied = np.where(costs <= least + tie, sizes, np.inf)
        s, cluster = divmod(int(tied.argmin()), tied.shape[1])
        size = float(tied[s, cluster])
        if np.isfinite(size) and (best is None or size < best[1] * (1 - 1e-12)):
            best = (float(costs[s, cluster]), size, (s, t, cluster))
    return best


def best_swap(land: Landscape, labels: Labels) -> Labels | None:
    """The best exchange of the places of two tasks, or None if none helps."""
    depth, n = labels.shape
    change = np.zeros((n, n))
    for d in range(depth):
        change += _swap_costs(land, labels[d], d)
    change = np.where(land.fitting_swaps(labels), change, np.inf)
    i, j = divmod(int(change.argmin()), n)
    if not change[i, j] < -land.losses.tie:
        return None
    swapped = labels.copy()
    swapped[:, [i, j]] = labels[:, [j, i]]
    return renumber(swapped)


def _swap_costs(land: Landscape, row: npt.NDArray[np.int64], d: int) -> Floats:
    """Change of stage d's cost for every exchange of two tasks, (N, N)."""
    n = len(row)
    clusters = membership(row)
    values = land.values(d, clusters)
    tasks = np.eye(n, dtype=np.bool_)
    gained = np.zeros((n, n))
    for i in range(n):
        rest = clusters[row[i]] & ~tasks[i]
        gained[i] = land.with_one(d, rest) - values[row[i]]
    change = (gained + gained.T) * land.losses.scale(len(clusters))
    change[row[:, None] == row[None]] = 0.0
    broken = _swap_breaks(land.rules, d, clusters, row)
    return np.where(broken, np.inf, change)


def _swap_breaks(rules: Rules, d: int, clusters: Bools, row: npt.NDArray[np.int64]) -> Bools:
    n = len(row)
    tasks = np.eye(n, dtype=np.bool_)
    different = row[:, None] != row[None]
    bound = (rules.together[d] & ~tasks).any(axis=1)
    apart = rules.apart[d].astype(np.int64)
    counts = apart @ clusters.T.astype(np.int64)
    clash = counts[:, row].T - apart > 0
    broken: Bools = bound[:, None] | bound[None] | clash | clash.T
    return np.array(broken & different)
