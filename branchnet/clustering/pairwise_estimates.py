"""Expected performance of a tree from measurements of pairs of tasks.

TreeMTL (Zhang et al. 2022) estimates a task's performance in a tree as the mean, over the other tasks, of its measured
performance in the two-task network that branches where the two do so in the tree. `values[b, i, j]` is the performance
of task i trained with task j when they share the first b of D stages, b = 0..D; larger is better.

The estimate of a tree is a sum over pairs of a number that depends only on how many stages the pair shares. Written as
increments, `values[d + 1] - values[d]` is what sharing stage d as well adds; so the estimate is additive over stages
and pairs, and every exact method applies.

Every entry of such a table is usually one training run, with that run's luck in it. How a task fares changes slowly
with the branch point, so neighbouring ones tell more about an entry than the entry alone: `smooth_measurements`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from branchnet.clustering.objectives import StageLosses
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError

Floats = npt.NDArray[np.float64]
_NOISE = 0.3


def expected_performance(values: npt.ArrayLike, tree: Tree, tasks: Sequence[str]) -> dict[str, float]:
    """TreeMTL's estimate for each task.

    Args:
        values: (D + 1, N, N); `values[b, i, j]` is the performance of task i with task j at b shared stages.
        tree: a tree of these tasks with D stages.
        tasks: the N names in the order of `values`.

    Returns:
        The estimate of each task, in the unit of `values`.

    Raises:
        AffinityError: values of the wrong shape or not finite.
        TreeError: other tasks.

    >>> measured = np.zeros((3, 2, 2))                      # 0, 1 and 2 shared stages
    >>> measured[:, 0, 1], measured[:, 1, 0] = [0.0, 2.0, 1.0], [0.0, -1.0, -3.0]
    >>> branched = branchnet.Tree(["depth", "edges"], [[["depth", "edges"]], [["depth"], ["edges"]]])
    >>> branchnet.expected_performance(measured, branched, ["depth", "edges"])
    {'depth': 2.0, 'edges': -1.0}
    """
    table = _checked(values, tasks)
    tree.check_tasks(tasks)
    if tree.depth != len(table) - 1:
        raise AffinityError(f"the tree has {tree.depth} stages; expected {len(table) - 1}, as the measurements have")
    depths = _shared_depths(tree, tasks)
    return {
        task: math.fsum(table[depths[i, j], i, j] for j in range(len(tasks)) if j != i) / max(len(tasks) - 1, 1)
        for i, task in enumerate(tasks)
    }


def expected_losses(
    values: npt.ArrayLike, tasks: Sequence[str], *, weights: Mapping[str, float] | str | None = None
) -> StageLosses:
    """The negated weighted mean of the estimates as an objective for `search` and `pareto_front`.

    Args:
        values: as for `expected_performance`.
        tasks: the N names.
        weights: `{task: weight}`, `"entropy"` (see `entropy_weights`), or None for equal ones; scaled to sum 1.

    Returns:
        An objective whose cost of a tree is minus the weighted mean of the estimates.

    Raises:
        AffinityError: values of the wrong shape or not finite, or weights that do not fit.
    """
    table = _checked(values, tasks)
    shares = _shares(weights, table, tasks)
    n = len(tasks)
    weighted = table * (shares[:, None] / max(n - 1, 1))
    # A pair's losses are symmetric: what either task gains from the other counts for both.
    both = weighted + weighted.transpose(0, 2, 1)
    both[:, np.arange(n), np.arange(n)] = 0.0
    offset = -math.fsum(both[0][np.triu_indices(n, 1)])
    return StageLosses(tuple(tasks), both[:-1] - both[1:], "sum", False, offset=offset, name="expected-performance")


def smooth_measurements(values: npt.ArrayLike, tasks: Sequence[str]) -> Floats:
    """Smooth the luck of single training runs out of the measurements, along the branch points.

    For each ordered pair the posterior mean of a Gaussian process over b = 0..D around the mean of its measurements:
    squared-exponential covariance, length scale D, noise variance 0.3 of the signal's. Of the smoothers that were
    compared (`benchmarks/estimates.py`) it predicts left-out entries of four published tables best; on the 20 trees
    that TreeMTL trained the smoothed estimate ranks better than the plain one.

    Args:
        values: as for `expected_performance`.
        tasks: the N names.

    Returns:
        Smoothed measurements, (D + 1, N, N).

    Raises:
        AffinityError: values of the wrong shape or not finite.
    """
    table = _checked(values, tasks)
    place = np.arange(len(table), dtype=np.float64)
    covariance = np.exp(-0.5 * ((place[:, None] - place) / (len(table) - 1)) ** 2)
    mean = table.mean(axis=0)
    weights = covariance @ np.linalg.inv(covariance + _NOISE * np.eye(len(table)))
    return np.asarray(mean + np.tensordot(weights, table - mean, axes=1))


def entropy_weights(values: npt.ArrayLike, tasks: Sequence[str]) -> dict[str, float]:
    """Task weights by SVD entropy: tasks whose measurements vary in more independent ways count more.

    For task i the matrix of its performances, (D + 1, N - 1), is centred; its normalised squared singular values p have
    the entropy -sum p log p, and weights are proportional to 1 + that entropy.

    Args:
        values: as for `expected_performance`.
        tasks: the N names.

    Returns:
        A weight for each task; their sum is 1.

    Raises:
        AffinityError: values of the wrong shape or not finite.
    """
    table = _checked(values, tasks)
    raw = {}
    for i, task in enumerate(tasks):
        partners = np.delete(table[:, i, :], i, axis=1)
        energy = np.linalg.svd(partners - partners.mean(axis=0), compute_uv=False) ** 2
        shares = energy[energy > 0] / energy.sum() if energy.sum() > 0 else np.ones(1)
        raw[task] = 1.0 - float((shares * np.log(shares)).sum())
    total = math.fsum(raw.values())
    return {task: weight / total for task, weight in raw.items()}


def _checked(values: npt.ArrayLike, tasks: Sequence[str]) -> Floats:
    table = np.array(values, dtype=np.float64)
    n = len(Tree.shared(tasks, 1).tasks)
    if table.ndim != 3 or table.shape[1:] != (n, n) or len(table) < 2:
        raise AffinityError(f"the pair measurements have shape {table.shape}; expected (D + 1, {n}, {n}) for {n} tasks")
    off = ~np.eye(n, dtype=np.bool_)
    if not np.isfinite(table[:, off]).all():
        b, i, j = np.argwhere(~np.isfinite(table) & off)[0]
        raise AffinityError(
            f"the performance of {tasks[i]!r} with {tasks[j]!r} at branch point {b} is {table[b, i, j]}; expected a "
            "finite number"
        )
    table[:, ~off] = 0.0
    return table


def _shares(weights: Mapping[str, float] | str | None, table: Floats, tasks: Sequence[str]) -> Floats:
    if isinstance(weights, str):
        if weights != "entropy":
            raise AffinityError(f"weights is {weights!r}; expected numbers per task, 'entropy' or None")
        weights = entropy_weights(table, tasks)
    numbers = np.ones(len(tasks)) if weights is None else np.array([weights.get(task, np.nan) for task in tasks])
    if not np.isfinite(numbers).all() or (numbers < 0).any() or numbers.sum() == 0:
        raise AffinityError(f"weights is {weights}; expected finite numbers for every task, none negative, not all 0")
    return np.asarray(numbers / numbers.sum())


def _shared_depths(tree: Tree, tasks: Sequence[str]) -> npt.NDArray[np.int64]:
    labels = np.array(tree.labels(tasks))
    return np.asarray((labels[:, :, None] == labels[:, None, :]).sum(axis=0))
