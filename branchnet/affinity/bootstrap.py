"""Resampling probe inputs, from comparisons of inputs that were computed once.

A bootstrap draw takes K inputs with replacement. Input a drawn w_a times makes the pair (a, b) count w_a * w_b times;
pairs of copies of one input, equal in every network, do not count. So a draw needs no new RDM and no new
sorting: average ranks follow from the running sum of the weights in the order of the full RDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.rdm_comparison import Comparison, compare_entries, tied_runs, unit_diagonal

Matrix: TypeAlias = npt.NDArray[np.float64]


def draw_weights(inputs: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """How often every input is drawn: (draws, K). Draws with fewer than three distinct inputs are drawn again."""
    # Three inputs make three pairs; two make one, which has no order and no correlation.
    random = np.random.default_rng(seed)
    weights = random.multinomial(inputs, np.full(inputs, 1 / inputs), size=draws)
    while (few := (weights > 0).sum(axis=1) < 3).any():
        weights[few] = random.multinomial(inputs, np.full(inputs, 1 / inputs), size=int(few.sum()))
    return weights


def resample_entries(entries: npt.NDArray[np.floating], comparison: Comparison, draws: int, seed: int) -> Matrix:
    """`compare_entries` on every draw.

    Args:
        entries: (M, P), upper triangles of RDMs over K inputs, P = K (K - 1) / 2.
        comparison: as `compare_rdms` takes it.
        draws: number of resamplings.
        seed: of the resampling.

    Returns:
        (draws, M, M).
    """
    inputs = inputs_of(entries.shape[1])
    if comparison == "kendall":
        return _resample_kendall(entries, inputs, draws, seed)
    count = len(entries)
    row, column = np.triu_indices(inputs, 1)
    orders = [_Order(one) for one in entries] if comparison == "spearman" else None
    result = np.empty((draws, count, count))
    for draw, weights in enumerate(_small_integers(draw_weights(inputs, draws, seed), inputs)):
        pairs = np.take(weights, row) * np.take(weights, column)
        drawn = np.flatnonzero(pairs != 0)
        values = np.stack([one.ranks(pairs, drawn) for one in orders]) if orders else np.take(entries, drawn, axis=1)
        result[draw] = _weighted_similarity(values, pairs[drawn], centred=comparison == "pearson")
    return result


def _small_integers(weights: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.integer]:
    """In 32 bits where twice the rank of every pair fits: half the memory traffic, which is what a draw costs."""
    return weights if inputs * inputs > np.iinfo(np.int32).max else weights.astype(np.int32)


class _Order:
    """The order of one RDM's entries, sorted once."""

    def __init__(self, values: npt.NDArray[np.floating]) -> None:
        order = np.argsort(values)
        starts, ends = tied_runs(values[order])
        self._order = order
        self._place = np.empty(len(order), dtype=np.int32)
        self._place[order] = np.arange(len(order), dtype=np.int32)
        several = ends - starts > 1
        self._starts, self._ends = starts[several], ends[several]
        self._tied = np.flatnonzero(np.repeat(several, ends - starts))

    def ranks(self, weights: npt.NDArray[np.integer], chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.integer]:
        """Twice the average ranks, less twice their mean, of `chosen` entries where entry p occurs `weights[p]` times.

        Twice an average rank is an integer, and the mean of average ranks does not depend on ties.
        """
        ordered = np.take(weights, self._order)
        reached = np.cumsum(ordered, dtype=weights.dtype)
        tied = reached[self._starts] - ordered[self._starts] + reached[self._ends - 1]
        twice = 2 * reached - ordered
        twice[self._tied] = np.repeat(tied, self._ends - self._starts)
        twice -= reached[-1]
        return np.take(twice, np.take(self._place, chosen))


def _weighted_similarity(values: npt.NDArray[Any], weights: npt.NDArray[np.integer], *, centred: bool) -> Matrix:
    """Cosine of every pair of rows, entry p counting `weights[p]` times, or correlation; 0 where a row is constant."""
    if centred:
        values = values - (values @ weights / weights.sum())[:, None]
    scaled = values * np.sqrt(weights)
    products = scaled @ scaled.T
    norms = np.sqrt(products.diagonal())
    norms = np.where(norms > 0, norms, np.inf)
    return unit_diagonal(np.clip(products / norms[:, None] / norms[None, :], -1.0, 1.0))


def _resample_kendall(entries: npt.NDArray[np.floating], inputs: int, draws: int, seed: int) -> Matrix:
    """Kendall's tau knows no weights here: pairs are repeated as often as they were drawn."""
    row, column = np.triu_indices(inputs, 1)
    names = [f"RDM {index}" for index in range(len(entries))]
    result = np.empty((draws, len(entries), len(entries)))
    for draw, weights in enumerate(draw_weights(inputs, draws, seed)):
        repeated = np.repeat(entries, weights[row] * weights[column], axis=1)
        result[draw] = compare_entries(repeated, "kendall", names)
    return result


def inputs_of(pairs: int) -> int:
    """K, of which `pairs` is K (K - 1) / 2."""
    return (1 + math.isqrt(1 + 8 * pairs)) // 2


def half_samples(
    grams: Sequence[npt.NDArray[np.floating]], compare: Callable[[list[Matrix]], Matrix], draws: int, seed: int
) -> Matrix:
    """`compare` on random halves of the inputs, (draws, M, M), moved to have their mean at the full comparison.

    For measures in which copies of one input would pass for similarity. A half drawn without replacement spreads as a
    bootstrap draw does: its variance given the data is (1 / (K/2)) (1 - 1/2) = 1/K of that of one input.
    """
    random = np.random.default_rng(seed)
    inputs = len(grams[0])
    result = []
    for _ in range(draws):
        half = np.sort(random.permutation(inputs)[: (inputs + 1) // 2])
        result.append(compare([gram[np.ix_(half, half)].astype(np.float64) for gram in grams]))
    samples: Matrix = np.stack(result)
    # These measures depend on the number of inputs, so halves are biased; only their spread is wanted.
    samples += compare([gram.astype(np.float64) for gram in grams]) - samples.mean(axis=0)
    return samples
