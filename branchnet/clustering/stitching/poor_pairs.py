"""Pairs that are shared only where the budget forces it: a stitching loss near that of a constant predictor.

Solvers minimise numbers, so each such pair costs a surcharge there that outweighs everything that sharing can cost: the
fewest of these pairs come first, then the least loss. Results give the loss without the surcharge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.search_result import ForcedPair

Floats = npt.NDArray[np.float64]
POOR = 0.9
"""Losses from here on are near those of a constant predictor, which has 1."""
Change = tuple[int, int, int]
"""Stage, donor and task, as numbers."""


@dataclass(frozen=True, eq=False)
class PoorPairs:
    """Which donors leave which tasks little better than a constant predictor.

    Attributes:
        tasks: N names.
        locations: D names.
        losses: (D, N, N), `[d, a, t]` the loss of task t after location d on features of donor a, without any weight.
        mask: (D, N, N), where the loss is poor and counts.
    """

    tasks: Sequence[str]
    locations: Sequence[str]
    losses: Floats
    mask: npt.NDArray[np.bool_]

    def named(self, changes: Iterable[Change]) -> tuple[ForcedPair, ...]:
        """The poor ones of these pairs, for people."""
        return tuple(
            ForcedPair(self.locations[d], self.tasks[a], self.tasks[t], float(self.losses[d, a, t]))
            for d, a, t in changes
            if self.mask[d, a, t]
        )


def measures_stitches(affinity: Affinity) -> bool:
    """Whether the affinity is 1 - the stitching loss."""
    return affinity.measure.startswith("stitch")


def poor_pairs(affinity: Affinity, weighted: Floats) -> PoorPairs | None:
    """The poor pairs of stitching losses; None where there are none, or for another measure.

    Args:
        affinity: values (D, N, N).
        weighted: (D, N, N) what pairs cost the objective: what weighs nothing may be shared freely.
    """
    if not measures_stitches(affinity):
        return None
    losses = 1.0 - affinity.values
    mask = (losses >= POOR) & (weighted > 0) & affinity.both_pass
    return PoorPairs(affinity.tasks, affinity.locations, losses, mask) if mask.any() else None


def surcharge(pairs: Floats) -> float:
    """More than any two trees can differ by, whichever the donors: no sum over tasks (and stages) is larger than half.

    Args:
        pairs: (D, N, N) losses by stage, donor and task.
    """
    return 2.0 * float(np.abs(pairs).max(axis=1).sum()) + 1.0
