"""How similar the RDMs of several networks are: every RDM is ranked once, then all pairs take one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import kendalltau
from torch import Tensor

from branchnet.affinity.measures.rdms import upper_triangle
from branchnet.affinity.probes import MINIMUM_INPUTS
from branchnet.errors import AffinityError

Comparison: TypeAlias = Literal["spearman", "pearson", "kendall", "cosine"]
Vector: TypeAlias = npt.NDArray[np.float64]


def compare_rdms(rdms: Tensor | Sequence[Tensor], *, comparison: Comparison = "spearman") -> Tensor:
    """Similarity of every pair of RDMs.

    Args:
        rdms: (M, K, K), or M matrices (K, K); the entries above the diagonal count.
        comparison: `"spearman"` gives tied entries their average rank (as Vandenhende et al. 2020 compare RDMs);
            `"pearson"` compares the values; `"kendall"` is tau-a; `"cosine"` subtracts no mean.

    Returns:
        float64, (M, M), ones on the diagonal.

    Raises:
        AffinityError: fewer than three inputs, entries that are not finite, or an RDM whose entries are all the same
            (all zero for cosine), to which similarity is undefined.
    """
    stacked = torch.stack(list(rdms)) if not isinstance(rdms, Tensor) else rdms
    if stacked.dim() != 3 or stacked.shape[1] != stacked.shape[2] or stacked.shape[1] < MINIMUM_INPUTS:
        raise AffinityError(
            f"the RDMs have shape {tuple(stacked.shape)}; expected (M, K, K) with K >= {MINIMUM_INPUTS}"
        )
    entries = np.stack([upper_triangle(one).cpu().numpy() for one in stacked])
    names = [f"RDM {index}" for index in range(len(entries))]
    return torch.from_numpy(compare_entries(entries, comparison, names))


def compare_entries(entries: npt.NDArray[np.floating], comparison: Comparison, names: Sequence[str]) -> Vector:
    """Similarity of every pair of rows of `entries` (M, P); `names` stand for the rows in errors."""
    if comparison not in get_args(Comparison):
        raise AffinityError(f"comparison is {comparison!r}; expected one of {get_args(Comparison)}")
    for row, name in zip(entries, names, strict=True):
        _check_entries(row, comparison, name)
    if comparison == "kendall":
        return _kendall_tau_a(entries)
    prepared = np.stack([_prepared(row, comparison) for row in entries])
    prepared /= np.linalg.norm(prepared, axis=1, keepdims=True)
    return unit_diagonal(np.clip(prepared @ prepared.T, -1.0, 1.0))


def average_ranks(values: npt.NDArray[np.floating]) -> Vector:
    """Ranks from 1; equal values share the mean of their ranks."""
    order = np.argsort(values)
    starts, ends = tied_runs(values[order])
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks


def tied_runs(ordered: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """First index, and index past the last, of every run of equal values."""
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    return starts, np.append(starts[1:], len(ordered))


def unit_diagonal(matrix: Vector) -> Vector:
    """The matrix made exactly symmetric, with ones on its diagonal."""
    symmetric = (matrix + matrix.T) / 2
    np.fill_diagonal(symmetric, 1.0)
    return symmetric


def _prepared(row: npt.NDArray[np.floating], comparison: Comparison) -> Vector:
    vector = average_ranks(row) if comparison == "spearman" else row.astype(np.float64)
    return vector if comparison == "cosine" else vector - vector.mean()


def _check_entries(row: npt.NDArray[np.floating], comparison: Comparison, name: str) -> None:
    low, high = row.min(), row.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise AffinityError(f"{name} has entries that are not finite; expected no NaN and no infinity")
    if low == high and (comparison != "cosine" or low == 0):
        raise AffinityError(
            f"{name}: all pairs of inputs are {low} apart; expected dissimilarities that differ, as their order is "
            "compared"
        )


def _kendall_tau_a(entries: npt.NDArray[np.floating]) -> Vector:
    """Concordant less discordant pairs over all pairs, ties included in the denominator.

    scipy has tau-b, which divides by the geometric mean of the untied pairs of both sides; multiplied back here.
    """
    count = len(entries)
    result = np.eye(count)
    pairs = entries.shape[1] * (entries.shape[1] - 1) / 2
    untied = [pairs - _tied_pairs(row) for row in entries]
    for i in range(count):
        for j in range(i):
            tau_b = kendalltau(entries[i], entries[j]).statistic
            result[i, j] = result[j, i] = tau_b * np.sqrt(untied[i] * untied[j]) / pairs
    return result


def _tied_pairs(row: npt.NDArray[np.floating]) -> float:
    starts, ends = tied_runs(np.sort(row))
    sizes = (ends - starts).astype(np.float64)
    return float((sizes * (sizes - 1) / 2).sum())
