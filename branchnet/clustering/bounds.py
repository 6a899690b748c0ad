"""Lower bounds for many tasks: no tree that fits the budget costs less.

Two things are relaxed. Each stage is bounded on its own, as a function of its width, without asking that stages nest;
and within a stage clusters are bounded without asking that they are disjoint. Then the widths are chosen at best within
the budget, exactly up to rounding down.

- Values by the largest loss (`max`): g(m) = the smallest diameter of any m tasks, found by searching for cliques in the
  graphs of pairs below a threshold. A stage of k clusters has sizes with sum (size - 1) = N - k, so its diameters' sum
  is at least the cheapest way to write N - k as a sum of k numbers, each number a costing g(a + 1).
- Values that are sums over tasks (`mean`, `sum`): a task in a cluster of s tasks loses at least what its s - 1 nearest
  tasks cost it, and sum over tasks of 1 / s is the number of clusters; the multiplier of that equation gives a line for
  every value of it, and their upper envelope bounds every width.
- `medoid`: all tasks but the k representatives lose at least their nearest loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from branchnet.clustering.constraints import Rules
from branchnet.clustering.duals import pair_bound
from branchnet.clustering.objectives import StageLosses
from branchnet.clustering.widths import least_cost

Floats = npt.NDArray[np.float64]
_CLIQUE_TASKS = 64
_CLIQUE_NODES = 2_000


def lower_bound(
    losses: StageLosses, rules: Rules, sizes: Floats, limit: float, *, target: float | None = None
) -> float:
    """A lower bound on the cost of every tree that fits.

    Args:
        losses: the objective.
        rules: the constraints.
        sizes: (D, N + 1) size of every stage at every width.
        limit: largest size, heads not included.
        target: cost of a known tree, if a tighter bound is worth seconds.
    """
    table = np.array([stage_bounds(losses, stage) for stage in range(losses.depth)])
    for stage in range(losses.depth):
        widths = np.arange(table.shape[1])
        table[stage, (widths < rules.min_width[stage]) | (widths > rules.max_width[stage])] = np.inf
    bound = least_cost(table, sizes, limit) + losses.offset
    if target is None or losses.kind not in ("mean", "sum") or losses.averaged:
        return bound
    return max(bound, pair_bound(losses, rules, sizes, limit, target - losses.offset))


def stage_bounds(losses: StageLosses, stage: int) -> Floats:
    """For every width 0..N a lower bound on the cost of a partition of that width; width 0 is inf."""
    pairs = losses.pairs[stage]
    n = len(pairs)
    if losses.kind == "max":
        sums = _diameter_sums(pairs)
    elif losses.kind == "medoid":
        sums = _medoid_sums(pairs)
    else:
        sums = _task_sums(pairs, losses.kind)
    bounds: Floats = np.full(n + 1, np.inf)
    bounds[1:] = sums * np.array([losses.scale(k) for k in range(1, n + 1)])
    return bounds


def _diameter_sums(pairs: Floats) -> Floats:
    """For k = 1..N a lower bound on the sum of k clusters' diameters."""
    n = len(pairs)
    if (pairs < 0).any():
        return np.array([k * min(0.0, float(pairs.min())) for k in range(1, n + 1)])
    smallest = clique_diameters(pairs)[1:]
    best = np.full(n, np.inf)
    best[0] = 0.0
    sums = np.empty(n)
    for k in range(1, n + 1):
        best = np.array([(smallest[: total + 1] + best[total::-1]).min() for total in range(n)])
        sums[k - 1] = best[n - k]
    return sums


def clique_diameters(pairs: Floats) -> Floats:
    """g(m) for m = 0..N: a lower bound on the diameter of any m tasks; exact for few tasks."""
    n = len(pairs)
    core = _degree_diameters(pairs)
    return np.maximum(core, _searched_diameters(pairs)) if n <= _CLIQUE_TASKS else core


def _degree_diameters(pairs: Floats) -> Floats:
    """Each of m tasks of diameter r has m - 1 others within r: the m-th smallest (m - 1)-th nearest loss."""
    n = len(pairs)
    nearest = np.sort(pairs + np.where(np.eye(n, dtype=np.bool_), -np.inf, 0.0), axis=1)
    bound = np.zeros(n + 1)
    for m in range(2, n + 1):
        bound[m] = np.sort(nearest[:, m - 1])[m - 1]
    return bound


def _searched_diameters(pairs: Floats) -> Floats:
    """Add pairs in order of loss; whenever a larger clique appears, its last pair is the diameter of that size."""
    n = len(pairs)
    first, second = np.triu_indices(n, 1)
    order = np.argsort(pairs[first, second], kind="stable")
    apart = [((1 << n) - 1) & ~(1 << i) for i in range(n)]
    diameters = np.zeros(n + 1)
    clique = 1
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        apart[i] &= ~(1 << j)
        apart[j] &= ~(1 << i)
        common = ((1 << n) - 1) & ~(apart[i] | apart[j] | (1 << i) | (1 << j))
        if common.bit_count() >= clique - 1 and _has_clique(common, clique - 1, apart, [_CLIQUE_NODES]):
            clique += 1
            diameters[clique] = pairs[i, j]
    return diameters


def _has_clique(tasks: int, needed: int, apart: list[int], nodes: list[int]) -> bool:
    """Whether `needed` of the tasks (a bit mask) are pairwise not apart; True where the search is cut short."""
    nodes[0] -= 1
    if nodes[0] < 0:
        return True
    spare = tasks.bit_count() - needed
    while spare >= 0:
        worst, conflicts, total = _worst_conflict(tasks, apart)
        if conflicts == 0:
            return True
        if total > 2 * spare * conflicts:
            return False
        if conflicts > spare:
            tasks &= ~(1 << worst)
            spare -= 1
            continue
        if conflicts > 1 and _has_clique(tasks & ~apart[worst], needed, apart, nodes):
            return True
        tasks &= ~(1 << worst)
        spare -= 1
    return False


def _worst_conflict(tasks: int, apart: list[int]) -> tuple[int, int, int]:
    """The task with most conflicts among `tasks`, their number, and the sum over all tasks."""
    worst = most = total = 0
    rest = tasks
    while rest:
        low = rest & -rest
        task = low.bit_length() - 1
        count = (apart[task] & tasks).bit_count()
        total += count
        if count > most:
            worst, most = task, count
        rest ^= low
    return worst, most, total


def _task_sums(pairs: Floats, kind: str) -> Floats:
    """For k = 1..N a lower bound on the sum of k clusters' values, from each task's nearest tasks."""
    n = len(pairs)
    nearest = np.sort(pairs + np.where(np.eye(n, dtype=np.bool_), np.inf, 0.0), axis=1)[:, : n - 1]
    sums = np.concatenate([np.zeros((n, 1)), np.cumsum(nearest, axis=1)], axis=1)
    sizes = np.arange(1, n + 1)
    shares = sums / np.maximum(sizes - 1, 1) if kind == "mean" else sums / 2
    spread = max(float(np.abs(shares).max()), 1e-300)
    slopes = np.concatenate([[0.0], spread * np.geomspace(1e-4, 1e3 * n, 400)])
    lines = np.array([(shares + slope / sizes).min(axis=1).sum() for slope in slopes])
    return np.asarray((lines[:, None] - slopes[:, None] * np.arange(1, n + 1)).max(axis=0))


def _medoid_sums(pairs: Floats) -> Floats:
    nearest = np.sort((pairs + np.where(np.eye(len(pairs), dtype=np.bool_), np.inf, 0.0)).min(axis=1))
    return np.concatenate([[0.0], np.cumsum(nearest)])[: len(pairs)][::-1].copy()
