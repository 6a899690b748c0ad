"""From affinities between networks to affinities between tasks, where tasks have several networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from branchnet.affinity.networks import Family
from branchnet.affinity.reliability import Reliability

Matrix = npt.NDArray[np.float64]


def task_values(between: Matrix, family: Family, weights: Matrix | None = None) -> Matrix:
    """Mean affinity of the networks of two tasks.

    Args:
        between: (D, M, M), affinities of M networks.
        family: the networks.
        weights: (M,), how often every network counts; once by default.

    Returns:
        (D, N, N), affinities of N tasks, ones on the diagonal.
    """
    share = _membership(family) * (1.0 if weights is None else weights)
    share = share / share.sum(axis=1, keepdims=True)
    values: Matrix = share @ between @ share.T
    diagonal = np.arange(len(family.tasks))
    values[:, diagonal, diagonal] = 1.0
    return values


def measure_reliability(between: Matrix, family: Family) -> Reliability | None:
    """How similar seeds are, from affinities (D, M, M) between networks; None where each task has one network."""
    groups = [np.flatnonzero(row) for row in _membership(family)]
    if all(len(group) == 1 for group in groups):
        return None
    ceiling = np.full((len(between), len(groups)), np.nan)
    for task, group in enumerate(groups):
        row, column = np.triu_indices(len(group), 1)
        if len(row):
            ceiling[:, task] = between[:, group[row], group[column]].mean(axis=1)
    mean = np.nanmean(ceiling, axis=1, keepdims=True)
    return Reliability(np.where(np.isnan(ceiling), mean, ceiling), _seed_correlation(between, groups))


def _seed_correlation(between: Matrix, groups: Sequence[npt.NDArray[np.intp]]) -> Matrix | None:
    seeds = min(len(group) for group in groups)
    if seeds < 2 or len(groups) < 3:
        return None
    row, column = np.triu_indices(len(groups), 1)
    result = np.empty(len(between))
    for location, matrix in enumerate(between):
        vectors = []
        for seed in range(seeds):
            chosen = [group[seed] for group in groups]
            vectors.append(matrix[np.ix_(chosen, chosen)][row, column])
        pairs = [(s, t) for s in range(seeds) for t in range(s)]
        result[location] = np.mean([_rank_correlation(vectors[s], vectors[t]) for s, t in pairs])
    return result


def _rank_correlation(first: Matrix, second: Matrix) -> float:
    """Spearman correlation; 1 where both leave all pairs equal, 0 where one does."""
    constant = [bool((vector == vector[0]).all()) for vector in (first, second)]
    if any(constant):
        return float(all(constant))
    return float(spearmanr(first, second).statistic)


def _membership(family: Family) -> Matrix:
    """(N, M): 1 where the network belongs to the task."""
    return np.array([[float(member.task == task) for member in family.members] for task in family.tasks])
