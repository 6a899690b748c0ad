"""The objective `stitch`: what every task loses at its last change of donor, at the best donors of a tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.search_result import Verdict
from branchnet.clustering.stitching.kept_donors import kept_donors
from branchnet.clustering.stitching.poor_pairs import PoorPairs, poor_pairs, surcharge
from branchnet.clustering.stitching.task_weights import task_factors
from branchnet.clustering.trees.tree import Tree

Floats = npt.NDArray[np.float64]
STITCH = "stitch"
RELATIVE_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class StitchLosses:
    """The objective applied to a tensor.

    Attributes:
        tasks: N names.
        pairs: (D, N, N), `[d, a, t]` what solvers count where task t last leaves donor a at location d; weights of
            tasks and the surcharge of poor pairs included, zeros on the diagonal.
        plain: the same without the surcharge.
        tie: costs that differ by no more than this are equal.
        surcharge: of every poor pair; 0 where there is none.
        poor: the poor pairs, which are used only where the budget forces it; None where there are none.
    """

    tasks: tuple[str, ...]
    pairs: Floats
    plain: Floats
    tie: float
    surcharge: float = 0.0
    poor: PoorPairs | None = None

    @property
    def depth(self) -> int:
        """Number of stages D."""
        return len(self.pairs)

    def verdict(self, tree: Tree) -> Verdict:
        """Cost of a tree at its best donors, those donors, and the poor pairs among its last changes.

        Args:
            tree: a tree of the same tasks and depth.

        Returns:
            The verdict.

        Raises:
            TreeError: other tasks or another depth.
        """
        found = kept_donors(tree, self.tasks, self.pairs)
        forced = () if self.poor is None else self.poor.named(found.changes)
        return Verdict(
            cost=math.fsum(self.plain[change] for change in found.changes),
            surcharge=self.surcharge * len(forced),
            forced=forced,
            donors=tuple(tuple(self.tasks[a] for a in stage) for stage in found.donors),
        )

    def sparing(self, affinity: Affinity) -> StitchLosses:
        """The same with a surcharge on poor pairs.

        Args:
            affinity: what these losses were made of.

        Returns:
            Itself where no pair is poor.
        """
        poor = poor_pairs(affinity, self.plain)
        if poor is None:
            return self
        extra = surcharge(self.plain)
        pairs = self.plain + extra * poor.mask
        return replace(self, pairs=_barred(pairs, affinity), surcharge=extra, poor=poor)


def stitch_losses(affinity: Affinity, task_weights: Mapping[str, float] | None = None) -> StitchLosses:
    """Apply the objective to a tensor.

    Args:
        affinity: values (D, N, N), 1 - the loss of task `[.., .., t]` on features of donor `[.., a, ..]`.
        task_weights: `{task: weight}` of the tasks' losses; None = those of the affinity.

    Returns:
        What the solvers work on.

    Raises:
        AffinityError: weights that do not fit.
    """
    factors = task_factors(affinity.task_weights if task_weights is None else task_weights, affinity.tasks)
    plain = (1.0 - affinity.values) * factors
    diagonal = np.arange(len(factors))
    plain[:, diagonal, diagonal] = 0.0
    tie = RELATIVE_TIE * affinity.largest_dissimilarity * float(factors.max())
    plain = _barred(plain, affinity)
    return StitchLosses(tuple(affinity.tasks), plain, plain, tie)


def _barred(pairs: Floats, affinity: Affinity) -> Floats:
    """Losses with which no path leaves a donor where one of the two tasks has left the trunk.

    A task that leaves early then has its last change of donor before, and nobody is fed by it from there on. One such
    pair loses more than the worst tree, which always exists: every task may have a network of its own.
    """
    if not affinity.depths:
        return pairs
    allowed = affinity.both_pass | np.eye(len(affinity.tasks), dtype=np.bool_)
    return np.where(allowed, pairs, surcharge(np.where(allowed, pairs, 0.0)))
