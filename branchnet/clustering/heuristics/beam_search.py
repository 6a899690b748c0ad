"""The published search for many tasks: a beam over spectral clusterings (Vandenhende et al. 2020, section 3.2).

From the last stage to the first: every partition in the beam proposes, for each smaller number of clusters, the
spectral clustering of its clusters by their mean affinity at that stage; the partial trees of least cost that can still
fit the budget stay in the beam. It is here for comparison: it knows no bound and never looks back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.deadline import Deadline
from branchnet.clustering.heuristics.local_search import Labels, Landscape, membership, renumber

Floats = npt.NDArray[np.float64]
Row = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Partial:
    """Partitions of the last stages, the earliest first."""

    rows: tuple[Row, ...]
    cost: float
    size: float


def beam_search(land: Landscape, deadline: Deadline, *, seed: int, width: int = 10) -> Labels | None:
    """The tree that the beam ends with, or None if the beam runs empty under the budget and the rules."""
    depth, n = land.losses.pairs.shape[:2]
    least = np.cumsum([land.sizes[d, land.rules.min_width[d] :].min() for d in range(depth)])
    beam = [_Partial((), 0.0, 0.0)]
    deadline.begin("beam search", depth)
    for d in range(depth - 1, -1, -1):
        room = land.limit * (1 + 1e-12) - (least[d - 1] if d else 0.0)
        grown: dict[bytes, _Partial] = {}
        for partial in beam:
            for row in _proposals(land, d, partial.rows[0] if partial.rows else np.arange(n), seed):
                size = partial.size + float(land.sizes[d, row.max() + 1])
                if size <= room and land.rules.allows(d, row.tolist()):
                    cost = partial.cost + land.stage_cost(d, row)
                    rows = (row, *partial.rows)
                    grown[np.stack(rows).tobytes()] = _Partial(rows, cost, size)
        beam = sorted(grown.values(), key=lambda partial: _rank(partial, land.losses.tie))[:width]
        deadline.step()
    return renumber(np.stack(beam[0].rows)) if beam else None


def _rank(partial: _Partial, tie: float) -> tuple[float, float, float]:
    """The cost in whole ties, then the size."""
    return (round(partial.cost / tie) if tie else 0, partial.size, partial.cost)


def _proposals(land: Landscape, stage: int, fine: Row, seed: int) -> Iterator[Row]:
    """Coarser partitions of `fine`, one for each number of clusters, and `fine` itself.

    Tasks that may share the stage with nobody, as those that have left the trunk, stay alone.
    """
    yield fine
    n = len(fine)
    alone = land.rules.apart[stage].sum(axis=1) == n - 1
    inner = np.flatnonzero(~alone)
    for row in _merged(land, stage, renumber(fine[inner][None])[0], inner, seed) if len(inner) else ():
        whole = np.empty_like(fine)
        whole[inner], whole[alone] = row, n + np.arange(alone.sum())
        yield renumber(whole[None])[0]


def _merged(land: Landscape, stage: int, fine: Row, tasks: npt.NDArray[np.intp], seed: int) -> Iterator[Row]:
    """Coarser partitions of some tasks, from their partition `fine`."""
    clusters = membership(fine).astype(float)
    k = len(clusters)
    if k == 1:
        return
    yield np.zeros_like(fine)
    counts = np.outer(clusters.sum(axis=1), clusters.sum(axis=1))
    losses = clusters @ land.losses.pairs[stage][np.ix_(tasks, tasks)] @ clusters.T / counts
    losses = (losses + losses.T) / 2  # losses may be directed, a graph is not
    similarity = np.maximum(losses.max() - losses, 0.0)
    np.fill_diagonal(similarity, similarity.max(initial=0.0))
    if similarity.max() == 0.0:
        return
    from sklearn.cluster import spectral_clustering

    for number in range(2, k):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # With zeros the graph may fall apart, for which scikit-learn warns and the eigenvectors are arbitrary.
            merged = spectral_clustering(
                similarity + 1e-12, n_clusters=number, random_state=seed, assign_labels="cluster_qr"
            )
        yield renumber(np.asarray(merged, dtype=np.int64)[fine][None])[0]
