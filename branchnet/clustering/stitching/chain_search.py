"""Trees of many tasks for the objective `stitch`: a descent, then the integer programme, which bounds and improves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.deadline import Deadline
from branchnet.clustering.stitching.chain_descent import ChainLandscape, better_starts, chain_search, descend_chains
from branchnet.clustering.stitching.chains import chains_of
from branchnet.clustering.stitching.facility_location import Programme
from branchnet.clustering.stitching.stitch_losses import StitchLosses

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SECONDS = 60.0
"""HiGHS stops after so long where no time limit is given."""


@dataclass(frozen=True, eq=False)
class FoundChains:
    """A tree with a bound.

    Attributes:
        labels: its cluster numbers, (D, N).
        bound: no tree that fits and has no more poor pairs costs less; surcharges are not in it.
        fewest: whether no tree that fits has fewer poor pairs.
        stopped: what ended the search early.
    """

    labels: Ints
    bound: float
    fewest: bool
    stopped: str


def search_chains(
    losses: StitchLosses, sizes: Floats, limit: float, deadline: Deadline, *, seed: int, exact: bool, seconds: float
) -> FoundChains:
    """The best tree of the descent and, where `exact`, of the integer programme; some tree must fit.

    Args:
        losses: what tasks lose.
        sizes: (D, N + 1) size of every stage at every width; inf where a width is not allowed.
        limit: largest size.
        deadline: when to stop.
        seed: of the random rounds.
        exact: whether HiGHS is asked.
        seconds: how long it may take at most.
    """
    land = ChainLandscape(losses.pairs, sizes, limit, losses.tie)
    starts, stopped = chain_search(land, deadline, seed)
    bound, fewest = _quick_bound(losses.plain, land), losses.poor is None or not _poor_count(losses, starts)
    if exact and not stopped:
        deadline.begin("solving the integer programme", 1)
        asked = _Asked(losses, land, Programme(sizes, limit), Deadline(deadline.left(seconds)))
        starts, fewest = asked.fewest_poor(starts, fewest)
        starts, proved, stopped = asked.least_cost(starts)
        bound = max(bound, proved)
    return FoundChains(chains_of(losses.pairs, starts).labels(losses.depth), bound, fewest, stopped)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Questions to HiGHS about one instance."""

    losses: StitchLosses
    land: ChainLandscape
    programme: Programme
    clock: Deadline

    def _left(self) -> float:
        return self.clock.left(np.inf)

    def fewest_poor(self, starts: Ints, fewest: bool) -> tuple[Ints, bool]:
        """Starts with fewer poor pairs, if there are any, and whether none has fewer still."""
        if fewest or self.losses.poor is None:
            return starts, True
        counted = self.programme.costs(self.losses.poor.mask.astype(float))
        answer = self.programme.least(counted, self._left() / 2)
        starts = self._better(starts, answer.starts)
        return starts, answer.bound > _poor_count(self.losses, starts) - 1 + 1e-6

    def least_cost(self, starts: Ints) -> tuple[Ints, float, str]:
        """Starts of least cost among those with no more poor pairs, a bound, and what ended the search early."""
        goal, limits = self.programme.costs(self.losses.plain), []
        if self.losses.poor is not None:
            counted = self.programme.costs(self.losses.poor.mask.astype(float))
            limits.append((counted, float(_poor_count(self.losses, starts))))
        answer = self.programme.least(goal, self._left(), limits=limits)
        starts = self._better(starts, answer.starts)
        cost = self._cost(starts)
        if answer.bound < cost - self.losses.tie:
            return starts, answer.bound, "its bound was cut short by the time limit"
        limits.append((goal, cost + self.losses.tie))
        smaller = self.programme.least(self.programme.size, self._left(), limits=limits)
        return self._better(starts, smaller.starts), answer.bound, ""

    def _better(self, starts: Ints, other: Ints | None) -> Ints:
        if other is None:
            return starts
        if self.land.sizes_of(other[None])[0] > self.land.limit * (1 + 1e-12):
            return starts  # it fits only by the solver's tolerance
        return better_starts(self.land, starts, descend_chains(self.land, other, Deadline()))

    def _cost(self, starts: Ints) -> float:
        """Without surcharges, at hosts with the fewest poor pairs."""
        return float(self.land.costs(starts[None])[0]) - self.losses.surcharge * _poor_count(self.losses, starts)


def _poor_count(losses: StitchLosses, starts: Ints) -> int:
    if losses.poor is None:
        return 0
    chains = chains_of(losses.pairs, starts)
    late = np.flatnonzero(starts > 0)
    return int(losses.poor.mask[starts[late] - 1, chains.hosts[late], late].sum())


def _quick_bound(pairs: Floats, land: ChainLandscape) -> float:
    """Only so many tasks can start at stage 0; every other one loses at least its least loss anywhere."""
    n = pairs.shape[1]
    alone = np.where(np.eye(n, dtype=np.bool_), np.inf, pairs).min(axis=(0, 1))
    if n == 1:
        return 0.0
    least = np.minimum.accumulate(land.sizes[1:, :0:-1], axis=1)[:, ::-1].sum(axis=0)
    fits = land.sizes[0, 1:] + least <= land.limit * (1 + 1e-12)
    sums = np.concatenate([[0.0], np.cumsum(np.sort(alone))])
    return float(sums[n - 1 - np.flatnonzero(fits)].min())
