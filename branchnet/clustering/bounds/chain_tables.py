"""What stages cost at least when one chain of nested clusters runs through them.

The clusters that hold one cluster of stage a, the anchor, form a chain through stages 0..a. A range says, for every
stage of the chain, how many tasks its cluster has at least and between which radii (diameters) it lies. A stage's table
is a lower bound for every width: the chain's cluster takes its radius, the other clusters what `clique_bounds` says.

Prices: with a multiplier on the budget, the stages' tables add up to a bound that tells stage by stage what a larger
radius costs. So two tasks that are far apart at several stages may be too expensive to be in one cluster, though no
stage alone forbids it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.clique_bounds import StageRadii

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
SMALL = 4
_PRICES, _THRESHOLDS = 80, 64
_ROOM = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class ChainRange:
    """A set of chains.

    Attributes:
        anchor: the last stage a of the chain.
        size: the anchor's number of tasks.
        least: for each stage 0..a the least number of tasks of the chain's cluster.
        radii: for each of these stages, least radii of chain clusters of m = 0..N tasks.
        most: for each of these stages, the largest radius.
    """

    anchor: int
    size: int
    least: tuple[int, ...]
    radii: tuple[Floats, ...]
    most: tuple[float, ...]

    @property
    def stages(self) -> range:
        """The stages of the chain."""
        return range(self.anchor + 1)

    def above(self, stage: int, size: int, radius: float) -> ChainRange:
        """The chains whose cluster of `stage`, if it has at least `size` tasks, has at least this radius."""
        row = self.radii[stage].copy()
        row[size:] = np.maximum(row[size:], radius)
        return replace(self, radii=(*self.radii[:stage], row, *self.radii[stage + 1 :]))

    def within(self, stage: int, size: int, radius: float) -> ChainRange:
        """The chains whose cluster of `stage` has at least `size` tasks and at most this radius."""
        least, most = list(self.least), list(self.most)
        for d in range(stage + 1):  # clusters of earlier stages hold it
            least[d] = max(least[d], size)
        most[stage] = min(most[stage], radius)
        return replace(self, least=tuple(least), most=tuple(most))


class ChainTables:
    """Tables of stages, for many ranges of chains.

    Args:
        losses: losses of the kind `max`, none negative.
        radii: for every stage.
        sizes: (D, N + 1) size of every stage at every width.
        limit: largest size.
        target: cost of a known tree; what costs as much does not matter.
    """

    def __init__(
        self, losses: StageLosses, radii: Sequence[StageRadii], sizes: Floats, limit: float, target: float
    ) -> None:
        self.pairs, self._sizes, self._limit, self._target = losses.pairs, sizes[:, 1:], limit * _ROOM, target
        self.depth, self.n = losses.depth, len(losses.tasks)
        self.scale = np.array([np.inf] + [losses.scale(k) for k in range(1, self.n + 1)])
        self._stage_radii = radii
        upper = np.triu_indices(self.n, 1)
        self.losses = [np.unique(pairs[upper]) for pairs in losses.pairs]
        highest = 100 * target / limit if limit > 0 else 0.0
        self._prices = np.concatenate([[0.0], highest * np.geomspace(1e-4, 1.0, _PRICES)])

    @cached_property
    def free(self) -> Floats:
        """(D, N + 1) bounds of stages on their own; inf at width 0."""
        return np.asarray(self.scale * [radii.of_widths(self.n) for radii in self._stage_radii])

    @cached_property
    def loose(self) -> Floats:
        """The same where no cluster has more than four tasks."""
        return np.asarray(self.scale * [radii.of_widths(SMALL) for radii in self._stage_radii])

    def ranges(self) -> Iterator[ChainRange]:
        """All chains: one range for every anchor and its size."""
        for anchor in range(self.depth - 1, -1, -1):
            radii = tuple(stage.smallest for stage in self._stage_radii[: anchor + 1])
            for size in range(SMALL + 1, self.n + 1):
                yield ChainRange(anchor, size, (size,) * (anchor + 1), radii, (np.inf,) * (anchor + 1))

    def table(self, chains: ChainRange) -> Floats:
        """(D, N + 1) bounds of the stages; stages after the anchor have small clusters only."""
        rows = [self._row(chains, d) for d in chains.stages]
        return np.concatenate([rows, self.loose[chains.anchor + 1 :]])

    def likely_sizes(self, chains: ChainRange, widths: tuple[int, ...]) -> list[int]:
        """For each stage of the chain the cluster's size that its table rests on at these widths."""
        return [int((self._radii(chains, d) + self._others(chains, d, widths[d])).argmin()) for d in chains.stages]

    def priced(self, table: Floats) -> tuple[float, float]:
        """The best bound from a price on the budget, and that price."""
        paid = (table[:, 1:, None] + self._prices * self._sizes[:, :, None]).min(axis=1).sum(axis=0)
        values = paid - self._prices * self._limit
        best = int(values.argmax())
        return float(values[best]), float(self._prices[best])

    def too_far(self, chains: ChainRange, table: Floats) -> list[Bools]:
        """For each stage of the chain which two tasks cannot both be in its cluster below the target, (N, N)."""
        bound, price = self.priced(table)
        base = (table[:, 1:] + price * self._sizes).min(axis=1)
        total = np.full((self.n, self.n), bound)
        far, levels = np.zeros((self.n, self.n), np.bool_), []
        for d in chains.stages:
            thresholds, places = self._thresholds[d]
            total = total + np.maximum(self._at_radii(chains, d, thresholds, price) - base[d], 0.0)[places]
            far = far | (total >= self._target) | (self.pairs[d] > chains.most[d])
            np.fill_diagonal(far, False)
            levels.append(far)
        return levels

    @cached_property
    def _thresholds(self) -> list[tuple[Floats, npt.NDArray[np.int64]]]:
        """For every stage a few of its losses, and for each pair the last of them that is not above its loss."""
        found = []
        for losses, pairs in zip(self.losses, self.pairs, strict=True):
            few = losses[np.unique(np.linspace(0, len(losses) - 1, _THRESHOLDS).astype(int))]
            found.append((few, np.maximum(np.searchsorted(few, pairs, side="right") - 1, 0)))
        return found

    def _at_radii(self, chains: ChainRange, d: int, radii: Floats, price: float) -> Floats:
        """What stage d costs at least, its size priced, when the chain's cluster has these radii."""
        reached = np.maximum(self._radii(chains, d)[None], radii[:, None])
        values = (reached[:, None] + self._others(chains, d)[None, 1:]).min(axis=2) * self.scale[1:]
        return np.asarray((np.maximum(values, self.free[d, 1:]) + price * self._sizes[d]).min(axis=1))

    def _row(self, chains: ChainRange, d: int) -> Floats:
        values = (self._radii(chains, d)[None] + self._others(chains, d)[1:]).min(axis=1) * self.scale[1:]
        return np.asarray(np.maximum(self.free[d], np.concatenate([[np.inf], values])))

    def _radii(self, chains: ChainRange, d: int) -> Floats:
        """Least radius of the chain's cluster for each of its possible sizes 0..N; inf for the others."""
        sizes = np.arange(self.n + 1)
        possible = (chains.radii[d] <= chains.most[d]) & (sizes >= chains.least[d])
        if d == chains.anchor:
            possible &= sizes == chains.size
        return np.where(possible, chains.radii[d], np.inf)

    def _others(self, chains: ChainRange, d: int, width: int | None = None) -> Floats:
        """`[w, m]`, or row `width`: least sum of the other clusters' diameters at width w, m tasks in the chain's."""
        sums = self._stage_radii[d].sums(chains.size if d == chains.anchor else self.n)
        rows = np.arange(self.n + 1)[:, None] if width is None else np.array(width)
        excess = self.n - rows - (np.arange(self.n + 1) - 1)
        others = sums[np.maximum(rows - 1, 0), np.clip(excess, 0, self.n - 1)]
        return np.where((rows >= 1) & (excess >= 0), others, np.inf)
