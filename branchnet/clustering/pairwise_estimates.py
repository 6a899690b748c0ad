"""Expected performance of a tree from measurements of pairs of tasks.

TreeMTL (Zhang et al. 2022) estimates a task's performance in a tree as the mean, over the other tasks, of its measured
change in the two-task network that branches where the two do so in the tree. `PairMeasurements.gain[b, task, partner]`
is that change when the two share the first b of D stages, b = 0..D; larger is better.

The estimate of a tree is a sum over pairs of a number that depends only on how many stages the pair shares. Written as
increments, `gain[d + 1] - gain[d]` is what sharing stage d as well adds; so the estimate is additive over stages
and pairs, and every exact method applies.

Every entry of such a table is usually one training run, with that run's luck in it. How a task fares changes slowly
with the branch point, so neighbouring ones tell more about an entry than the entry alone: `smooth_measurements`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError

Floats = npt.NDArray[np.float64]
_NOISE = 0.3


def expected_performance(pairs: PairMeasurements, tree: Tree) -> dict[str, float]:
    """TreeMTL's estimate for each task.

    Args:
        pairs: measured changes.
        tree: a tree of the same tasks with D stages.

    Returns:
        The estimated change of each task in percent.

    Raises:
        AffinityError: no `PairMeasurements`, or a tree of another depth.
        TreeError: other tasks.

    >>> measured = np.zeros((3, 2, 2))                      # 0, 1 and 2 shared stages
    >>> measured[:, 0, 1], measured[:, 1, 0] = [0.0, 2.0, 1.0], [0.0, -1.0, -3.0]
    >>> pairs = branchnet.PairMeasurements(["depth", "edges"], measured)
    >>> branched = branchnet.Tree(["depth", "edges"], [[["depth", "edges"]], [["depth"], ["edges"]]])
    >>> branchnet.expected_performance(pairs, branched)
    {'depth': 2.0, 'edges': -1.0}
    """
    gain, tasks = _gain(pairs), pairs.tasks
    tree.check_tasks(tasks)
    if tree.depth != len(gain) - 1:
        raise AffinityError(f"the tree has {tree.depth} stages; expected {len(gain) - 1}, as the measurements have")
    depths = _shared_depths(tree, tasks)
    return {
        task: math.fsum(gain[depths[i, j], i, j] for j in range(len(tasks)) if j != i) / max(len(tasks) - 1, 1)
        for i, task in enumerate(tasks)
    }


def expected_losses(pairs: PairMeasurements, *, weights: Mapping[str, float] | str | None = None) -> StageLosses:
    """The negated weighted mean of the estimates as an objective for `search` and `pareto_front`.

    Args:
        pairs: measured changes; `search` takes them, too, and weighs all tasks equally.
        weights: `{task: weight}`, `"entropy"` (see `entropy_weights`), or None for equal ones; scaled to sum 1.

    Returns:
        An objective whose cost of a tree is minus the weighted mean of the estimates.

    Raises:
        AffinityError: no `PairMeasurements`, or weights that do not fit.
    """
    gain, tasks = _gain(pairs), pairs.tasks
    shares = _shares(weights, pairs)
    n = len(tasks)
    weighted = gain * (shares[:, None] / max(n - 1, 1))
    # A pair's losses are symmetric: what either task gains from the other counts for both.
    both = weighted + weighted.transpose(0, 2, 1)
    return StageLosses(tasks, both[:-1] - both[1:], "sum", False, name="expected-performance")


def smooth_measurements(pairs: PairMeasurements) -> PairMeasurements:
    """Smooth the luck of single training runs out of the measurements, along the branch points.

    For each ordered pair the posterior mean of a Gaussian process over b = 0..D around the mean of its measurements:
    squared-exponential covariance, length scale D, noise variance 0.3 of the signal's. At b = 0 nothing is shared, so
    the change is known to be 0: it has no noise and stays 0. `benchmarks/estimates.py` compares smoothers by how they
    predict left-out entries of four published tables; on the 20 trees that TreeMTL trained the smoothed estimate ranks
    better than the plain one.

    Args:
        pairs: measured changes.

    Returns:
        Smoothed measurements of the same tasks and locations.

    Raises:
        AffinityError: no `PairMeasurements`.
    """
    gain = _gain(pairs)
    place = np.arange(len(gain), dtype=np.float64)
    covariance = np.exp(-0.5 * ((place[:, None] - place) / (len(gain) - 1)) ** 2)
    noise = np.full(len(gain), _NOISE)
    noise[0] = 0.0
    mean = gain.mean(axis=0)
    weights = covariance @ np.linalg.inv(covariance + np.diag(noise))
    smooth = mean + np.tensordot(weights, gain - mean, axes=1)
    smooth[0] = 0.0
    return replace(pairs, gain=smooth)


def entropy_weights(pairs: PairMeasurements) -> dict[str, float]:
    """Task weights by SVD entropy: tasks whose measurements vary in more independent ways count more.

    For task i the matrix of its changes, (D + 1, N - 1), is centred; its normalised squared singular values p have
    the entropy -sum p log p, and weights are proportional to 1 + that entropy.

    Args:
        pairs: measured changes.

    Returns:
        A weight for each task; their sum is 1.

    Raises:
        AffinityError: no `PairMeasurements`.
    """
    gain = _gain(pairs)
    raw = {}
    for i, task in enumerate(pairs.tasks):
        partners = np.delete(gain[:, i, :], i, axis=1)
        energy = np.linalg.svd(partners - partners.mean(axis=0), compute_uv=False) ** 2
        shares = energy[energy > 0] / energy.sum() if energy.sum() > 0 else np.ones(1)
        raw[task] = 1.0 - float((shares * np.log(shares)).sum())
    total = math.fsum(raw.values())
    return {task: weight / total for task, weight in raw.items()}


def _gain(pairs: PairMeasurements) -> Floats:
    if not isinstance(pairs, PairMeasurements):
        raise AffinityError(
            f"the pair measurements are a {type(pairs).__name__}, which does not say which axis is the task; expected "
            "PairMeasurements: PairMeasurements.read(table), or PairMeasurements(tasks, gain) with "
            "gain[branch point, task, partner]"
        )
    return pairs.gain


def _shares(weights: Mapping[str, float] | str | None, pairs: PairMeasurements) -> Floats:
    if isinstance(weights, str):
        if weights != "entropy":
            raise AffinityError(f"weights is {weights!r}; expected numbers per task, 'entropy' or None")
        weights = entropy_weights(pairs)
    numbers = (
        np.ones(len(pairs.tasks)) if weights is None else np.array([weights.get(task, np.nan) for task in pairs.tasks])
    )
    if not np.isfinite(numbers).all() or (numbers < 0).any() or numbers.sum() == 0:
        raise AffinityError(f"weights is {weights}; expected finite numbers for every task, none negative, not all 0")
    return np.asarray(numbers / numbers.sum())


def _shared_depths(tree: Tree, tasks: Sequence[str]) -> npt.NDArray[np.int64]:
    labels = np.array(tree.labels(tasks))
    return np.asarray((labels[:, :, None] == labels[:, None, :]).sum(axis=0))
