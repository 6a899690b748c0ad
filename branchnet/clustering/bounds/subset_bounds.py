"""Lower bounds under budgets for some of the tasks, for many tasks: no tree that meets the limits costs less.

Three relaxations, each valid by itself, of which the best counts:

- By width: of w clusters at least w - (N - S) have one of the S tasks of a limit, so each limit bounds the widths of
  all tasks, too, and the bounds of `lower_bounds` hold for any mixture of the limits.
- By task: in a cluster with s tasks of a limit, each of them loses at least what its nearest tasks cost it; the sum of
  1 / s over these tasks is their number of clusters, which the limit bounds.
- By block: a few tasks are kept, and clusters are valued by the least that they cost with any others; then trees of
  these tasks are few enough for the bound of `exact.subset_program`. Blocks have different tasks, so their bounds add
  up where costs are sums over tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.clique_bounds import stage_radii
from branchnet.clustering.bounds.lower_bounds import rising_bounds
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.budgets.further_limits import mixtures
from branchnet.clustering.constraints import Rules
from branchnet.clustering.deadline import Deadline
from branchnet.clustering.exact.dynamic_program import cluster_values
from branchnet.clustering.exact.partition_lattice import Lattice, lattice
from branchnet.clustering.exact.subset_program import SubsetLimit, relaxed, subset_tables

Floats = npt.NDArray[np.float64]
BLOCK = 7
"""Tasks of a block: 877 partitions."""
_SLOPES = 400
# Whole sums are compared with whole sums: what rounding of a few sums may add.
_SLACK = 1e-12


def subset_bounds(
    losses: StageLosses,
    rules: Rules,
    limits: Sequence[SubsetLimit],
    *,
    target: float,
    effort: int,
    deadline: Deadline,
) -> Iterator[float]:
    """Lower bounds, each valid by itself; they end where one reaches the cost of the known tree.

    Args:
        losses: the objective.
        rules: the constraints.
        limits: the limits, at least one.
        target: cost of a known tree.
        effort: how many steps the bounds by width may take.
        deadline: raises OutOfTime.
    """
    n = len(losses.tasks)
    wide = np.array([_of_all_widths(limit, n) for limit in limits])
    tables = list(mixtures(wide)) if len(wide) > 1 else [wide[0]]
    finite = [table for table in tables if np.isfinite(table).all()]
    several = chain(
        (next(rising_bounds(losses, rules, table, 1.0)) for table in tables),
        (_by_task(losses, rules, limits) for _ in range(1)),
        _by_block(losses, rules, limits, target, deadline),
        *(
            rising_bounds(losses, rules, table, 1.0, target=target, effort=max(1, effort // len(tables)))
            for table in finite
        ),
    )
    for bound in several:
        yield bound
        if bound >= target:
            return


def _of_all_widths(limit: SubsetLimit, n: int) -> Floats:
    """(D, N + 1) the least share that a stage with so many clusters of all tasks takes."""
    inside = len(limit.members)
    table = np.zeros((len(limit.shares), n + 1))
    for width in range(1, n + 1):
        fewest, most = max(1, width - (n - inside)), min(width, inside)
        table[:, width] = limit.shares[:, fewest : most + 1].min(axis=1)
    return table


def _by_task(losses: StageLosses, rules: Rules, limits: Sequence[SubsetLimit]) -> float:
    """The sum over limits for different tasks, where costs are sums over tasks; otherwise the best of one limit."""
    n = len(losses.tasks)
    adds_up = losses.kind != "max" and not losses.averaged
    alone = [_of_limit(losses, rules, limit) for limit in limits]
    best = -np.inf
    for first in range(len(limits)):
        total, used = alone[first], set(limits[first].members)
        for other in sorted(range(len(limits)), key=lambda number: -alone[number]) if adds_up else ():
            if not used & set(limits[other].members):
                total, used = total + alone[other], used | set(limits[other].members)
        rest = [task for task in range(n) if task not in used]
        best = max(best, total + (_gains(losses, rest).sum() if adds_up else 0.0) / losses.divisor)
    return best - _SLACK * abs(best) + losses.offset


def _of_limit(losses: StageLosses, rules: Rules, limit: SubsetLimit) -> float:
    """What the tasks of a limit lose at least; all of a stage where costs are no sums over tasks."""
    n, inside = len(losses.tasks), len(limit.members)
    members = np.array(limit.members)
    outside = np.array([task for task in range(n) if task not in limit.members], dtype=np.int64)
    widths = np.arange(1, inside + 1)
    table = np.full((losses.depth, inside + 1), np.inf)
    for d, pairs in enumerate(losses.pairs):
        if losses.kind == "max":
            block = np.maximum(pairs[np.ix_(members, members)], 0.0)
            sums = stage_radii(block).of_widths(inside)[1:] if inside > 1 else np.zeros(1)
            sums = sums + min(float(pairs.min()), 0.0) * (n // 2)
        elif losses.kind == "medoid":
            sums = _medoid_sums(pairs, members)
        else:
            sums = _sums_by_width(_shares_of_tasks(pairs, members, outside, losses.kind))
        if losses.averaged:
            if losses.kind != "max":
                sums = sums + _gains(losses, outside.tolist())[d]
            scales = np.array([[losses.scale(int(w)), losses.scale(int(w) + n - inside)] for w in widths])
            table[d, 1:] = (sums[:, None] * scales).min(axis=1)
        else:
            table[d, 1:] = sums / losses.divisor
    most = tuple(min(inside, width) for width in rules.max_width)
    held = np.ix_(np.arange(losses.depth), members, members)
    small = Rules(rules.together[held], rules.apart[held], (1,) * losses.depth, most)
    return WidthBounds(small, limit.shares[:, : inside + 1], 1.0).least(table)[0]


def _gains(losses: StageLosses, tasks: Sequence[int]) -> Floats:
    """What some tasks contribute at least to the cluster values of each stage, (D,): gains, or nothing."""
    if losses.kind == "max":
        return np.zeros(losses.depth)
    pairs = np.minimum(losses.pairs[:, :, list(tasks)], 0.0)  # columns are the tasks that are served
    return np.asarray(
        pairs.sum(axis=(1, 2)) / 2 if losses.kind == "sum" else pairs.min(axis=1, initial=0.0).sum(axis=1)
    )


def _nearest_sums(pairs: Floats, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Floats:
    """For each of the rows the sums of its 0, 1, 2, ... least losses to the columns, itself excluded."""
    block = np.where(rows[:, None] == columns[None], np.inf, pairs[np.ix_(rows, columns)])
    nearest = np.sort(block, axis=1)[:, : len(columns) - bool(np.isin(rows, columns).any())]
    return np.concatenate([np.zeros((len(rows), 1)), np.cumsum(nearest, axis=1)], axis=1)


def _shares_of_tasks(
    pairs: Floats, members: npt.NDArray[np.int64], outside: npt.NDArray[np.int64], kind: str
) -> Floats:
    """(S, S) what each member loses at least in a cluster with s = 1..S members and any others."""
    own, others = _nearest_sums(pairs, members, members), _nearest_sums(pairs, members, outside)
    if kind == "sum":
        return np.asarray((own + np.minimum(pairs[np.ix_(members, outside)], 0.0).sum(axis=1)[:, None]) / 2)
    counts = np.arange(own.shape[1])[:, None] + np.arange(others.shape[1])
    means = (own[:, :, None] + others[:, None, :]) / np.maximum(counts, 1)
    return np.asarray(means.min(axis=2))


def _sums_by_width(shares: Floats) -> Floats:
    """For every number of clusters 1..S the least sum of (S, S) shares, where 1 / s adds up to that number."""
    sizes = np.arange(1, len(shares) + 1)
    spread = max(float(np.abs(shares).max()), 1e-300)
    slopes = np.concatenate([[0.0], spread * np.geomspace(1e-4, 1e3 * len(shares), _SLOPES)])
    chosen = np.array([(shares + slope / sizes).argmin(axis=1) for slope in slopes])
    lost = shares[np.arange(len(shares)), chosen].sum(axis=1)
    # With few tasks sum (1 / s) - k is small next to the slopes, so it is taken before it is multiplied.
    surplus = (1.0 / sizes[chosen]).sum(axis=1)[:, None] - sizes
    surplus[np.abs(surplus) < 1e-12] = 0.0
    return np.asarray((lost[:, None] + slopes[:, None] * surplus - 1e-12 * slopes[:, None]).max(axis=0))


def _medoid_sums(pairs: Floats, members: npt.NDArray[np.int64]) -> Floats:
    """All members but one for each cluster lose at least their nearest loss to a representative."""
    block = np.where(np.arange(len(pairs))[:, None] == members[None], np.inf, pairs[:, members])
    nearest = block.min(axis=0)
    gains = np.minimum(nearest, 0.0).sum()
    positive = np.sort(np.maximum(nearest, 0.0))
    return np.asarray(gains + np.concatenate([[0.0], np.cumsum(positive)])[: len(members)][::-1])


def _by_block(
    losses: StageLosses, rules: Rules, limits: Sequence[SubsetLimit], target: float, deadline: Deadline
) -> Iterator[float]:
    """Bounds of the blocks alone, then their sum where costs are sums over tasks."""
    n = len(losses.tasks)
    adds_up = losses.kind != "max" and not losses.averaged
    blocks = _blocks(losses, limits)
    total, used = 0.0, set[int]()
    for block in blocks:
        rest = [task for task in range(n) if task not in block]
        gains = 0.0 if not adds_up else float(_gains(losses, rest).sum()) / losses.divisor
        bound = _of_block(losses, rules, limits, block, target - losses.offset - gains, deadline)
        yield bound + gains + losses.offset
        total, used = total + bound, used | set(block)
    if adds_up and len(blocks) > 1:
        left = float(_gains(losses, [task for task in range(n) if task not in used]).sum()) / losses.divisor
        yield total + left - _SLACK * abs(total) + losses.offset


def _blocks(losses: StageLosses, limits: Sequence[SubsetLimit]) -> list[list[int]]:
    """Sets of different tasks: those of limits together as far as they fit, filled up with their nearest others."""
    n = len(losses.tasks)
    nearness = losses.pairs.mean(axis=0)
    nearness = nearness + nearness.T
    pending = sorted((sorted(limit.members) for limit in limits if len(limit.members) < n), key=len)
    blocks: list[list[int]] = []
    used: set[int] = set()
    for members in pending or [list(range(n))]:
        left = [task for task in members if task not in used]
        if blocks and len(blocks[-1]) + len(left) <= BLOCK:
            blocks[-1] += left
            used |= set(left)
            continue
        for start in range(0, len(left), BLOCK):
            blocks.append(left[start : start + BLOCK])
            used |= set(blocks[-1])
    for block in blocks:
        while block and len(block) < BLOCK and len(used) < n:
            near = min((task for task in range(n) if task not in used), key=lambda task: nearness[task, block].min())
            block.append(near)
            used.add(near)
    return [sorted(block) for block in blocks if block]


def _of_block(
    losses: StageLosses,
    rules: Rules,
    limits: Sequence[SubsetLimit],
    block: Sequence[int],
    target: float,
    deadline: Deadline,
) -> float:
    n, grid, members = len(losses.tasks), lattice(len(block)), np.array(block)
    held = np.ix_(np.arange(losses.depth), members, members)
    most = tuple(min(len(block), width) for width in rules.max_width)
    fewest = tuple(max(1, width - (n - len(block))) for width in rules.min_width)
    small = Rules(rules.together[held], rules.apart[held], fewest, most)
    costs = [_block_costs(losses, small, grid, members, d) for d in range(losses.depth)]
    own = [_of_members(limit, block) for limit in limits if set(limit.members) & set(block)]
    return relaxed(subset_tables(grid, costs, own), target, deadline).bound


def _of_members(limit: SubsetLimit, block: Sequence[int]) -> SubsetLimit:
    """The limit for the tasks of a block: its other tasks may have clusters of their own, or none."""
    kept = [number for number, task in enumerate(block) if task in limit.members]
    others = len(limit.members) - len(kept)
    shares = np.zeros((len(limit.shares), len(block) + 1))
    for width in range(len(kept) + 1):
        if width + others:  # at least one of the tasks has a cluster
            shares[:, width] = limit.shares[:, max(width, 1) : width + others + 1].min(axis=1)
    return SubsetLimit(tuple(kept), shares)


def _block_costs(
    losses: StageLosses, rules: Rules, grid: Lattice, members: npt.NDArray[np.int64], stage: int
) -> list[Floats]:
    """The least that a stage costs at every partition of the block, level by level; inf where rules do not allow it."""
    n, pairs = len(losses.tasks), losses.pairs[stage]
    outside = np.array([task for task in range(n) if task not in set(members.tolist())], dtype=np.int64)
    values = _block_values(pairs, losses.kind, members, outside)
    values[~rules.allowed_clusters(stage)] = np.inf
    more = 0.0
    if losses.kind == "max" and len(outside):
        more = min(float(pairs.min()), 0.0) * (n // 2)
    elif losses.averaged:
        more = float(_gains(losses, outside.tolist())[stage])
    levels = [np.zeros(0)]
    for k in range(1, grid.n + 1):
        total = values[grid.masks[k]].sum(axis=0) + more
        scales = [losses.scale(k), losses.scale(k + len(outside))]
        cost = np.minimum(total * scales[0], total * scales[1])
        levels.append(cost if rules.min_width[stage] <= k <= rules.max_width[stage] else np.full_like(cost, np.inf))
    return levels


def _block_values(pairs: Floats, kind: str, members: npt.NDArray[np.int64], outside: npt.NDArray[np.int64]) -> Floats:
    """The least that the members of a cluster cost with any other tasks in it, (2^S,), indexed by bit mask."""
    block = pairs[np.ix_(members, members)]
    if not len(outside) or kind == "max":
        return cluster_values(np.maximum(block, 0.0) if len(outside) else block, kind)
    inside = (np.arange(1 << len(members))[:, None] >> np.arange(len(members))) & 1
    if kind == "medoid":
        reach = pairs[:, members].copy()
        reach[members, np.arange(len(members))] = 0.0
        return np.asarray((inside @ reach.T).min(axis=1))
    if kind == "sum":
        gains = np.minimum(pairs[np.ix_(members, outside)], 0.0).sum(axis=1) / 2
        return np.asarray(cluster_values(block, kind) + inside @ gains)
    own = inside @ block  # of each member to those of the cluster; the diagonal is 0
    others = _nearest_sums(pairs, members, outside)
    counts = (inside.sum(axis=1) - 1)[:, None] + np.arange(others.shape[1])
    means = (own[:, :, None] + others[None]) / np.maximum(counts, 1)[:, None, :]
    return np.asarray((means.min(axis=2) * inside).sum(axis=1))
