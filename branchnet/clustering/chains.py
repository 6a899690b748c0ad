"""A tighter lower bound for objectives by the largest loss: one chain of nested clusters through the stages.

Stage bounds choose their tasks anew at every stage. But the clusters that hold one cluster of stage e, the anchor, form
a chain through stages 0..e, and the tasks of the chain's cluster of stage d are together at all stages up to d: they
are a clique in the graphs of all those stages at once. So not all radii (diameters of the chain's clusters) and sizes
are possible together, and a vector of radii that admits no such cliques can be excluded with everything below it.

Branch and bound: first on the anchor, the largest cluster of the last stage that has one of more than four tasks, and
its size; then a node's cheapest widths, sizes and radii are tested, and if they are impossible, so are radii raised
evenly up to some limit; in one stage at least the radius must be larger, or the chain's cluster smaller: one branch for
each stage. The bound is the least of all open nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import numpy.typing as npt

from branchnet.clustering.cliques import clique_diameters, cover_thresholds, diameter_sums, may_have_clique
from branchnet.clustering.constraints import Rules
from branchnet.clustering.objectives import StageLosses
from branchnet.clustering.widths import WidthBounds

Floats = npt.NDArray[np.float64]
_LARGEST = 60
_SMALL = 4
_NODES = 300
_HALVINGS = 6


def chain_bound(
    losses: StageLosses, rules: Rules, sizes: Floats, limit: float, target: float, expansions: int
) -> float:
    """A lower bound on the cost of every tree that fits, offset not included; -inf for too many tasks.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kind `max`.
        target: cost of a known tree, which the bound never exceeds.
        expansions: how many nodes are branched on.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST or (losses.pairs < 0).any():
        return -np.inf
    chains = _Chains(losses, WidthBounds(rules, sizes, limit), target)
    bound, number = min(target, chains.without_anchor()), count()
    heap = [(node.value, next(number), node) for node in chains.roots() if node.value < bound]
    heapq.heapify(heap)
    while heap and heap[0][0] < bound:
        if not expansions:
            return heap[0][0]
        expansions -= 1
        value, _, node = heapq.heappop(heap)
        raised = chains.raised(node)
        if raised is None:
            return value
        for child in chains.children(node, raised):
            if child.value < bound:
                heapq.heappush(heap, (child.value, next(number), child))
    return bound


@dataclass(frozen=True, eq=False)
class _Node:
    """Least radii of the chain and what follows from them.

    Attributes:
        anchor: the anchor's stage.
        size: the anchor's number of tasks.
        radii: for each stage 0..anchor least radii of chain clusters of m = 0..N tasks.
        table: (D, N + 1) bounds of stages at every width.
        value: bound of the node.
        widths: widths that attain it.
    """

    anchor: int
    size: int
    radii: tuple[Floats, ...]
    table: Floats
    value: float
    widths: tuple[int, ...]


class _Chains:
    def __init__(self, losses: StageLosses, widths: WidthBounds, target: float) -> None:
        self._pairs, self._target, self._widths = losses.pairs, target, widths
        self._depth, self._n = losses.depth, len(losses.tasks)
        self._scale = np.array([np.inf] + [losses.scale(k) for k in range(1, self._n + 1)])
        self._smallest = [clique_diameters(pairs) for pairs in losses.pairs]
        self._cover = [cover_thresholds(p, g) for p, g in zip(losses.pairs, self._smallest, strict=True)]
        self._losses = [np.unique(pairs[np.triu_indices(self._n, 1)]) for pairs in losses.pairs]
        self._capped: dict[tuple[int, int], Floats] = {}

    @cached_property
    def _free(self) -> Floats:
        """(D, N + 1) bounds of stages on their own."""
        return np.array([self._stage(d, self._n) for d in range(self._depth)])

    @cached_property
    def _loose(self) -> Floats:
        """The same where all clusters are small."""
        return np.array([self._stage(d, _SMALL) for d in range(self._depth)])

    def _stage(self, d: int, largest: int) -> Floats:
        sums, widths = self._sums(d, largest), np.arange(1, self._n + 1)
        return np.concatenate([[np.inf], sums[widths, self._n - widths] * self._scale[1:]])

    def _sums(self, d: int, largest: int) -> Floats:
        if (d, largest) not in self._capped:
            smallest = self._smallest[d].copy()
            smallest[largest + 1 :] = np.inf
            self._capped[d, largest] = diameter_sums(smallest, self._cover[d])
        return self._capped[d, largest]

    def without_anchor(self) -> float:
        """Bound on trees in which no cluster is larger than four tasks."""
        return self._widths.least(self._loose, self._target)[0]

    def roots(self) -> Iterator[_Node]:
        """A node for every stage and size of the anchor."""
        for anchor in range(self._depth - 1, -1, -1):
            radii = tuple(self._smallest[: anchor + 1])
            for size in range(_SMALL + 1, self._n + 1):
                table = np.concatenate([self._free[: anchor + 1], self._loose[anchor + 1 :]])
                for d in range(anchor + 1):
                    table[d] = self._row(d, anchor, size, radii[d])
                yield self._node(anchor, size, radii, table)

    def _node(self, anchor: int, size: int, radii: tuple[Floats, ...], table: Floats) -> _Node:
        value, widths = self._widths.least(table, self._target)
        return _Node(anchor, size, radii, table, value, widths)

    def _options(self, d: int, anchor: int, size: int, radii: Floats) -> Floats:
        """`[w, m]`: least sum of diameters at width w with a chain cluster of m tasks."""
        n = self._n
        others = self._sums(d, size if d == anchor else n)
        width, m = np.ogrid[0 : n + 1, 0 : n + 1]
        excess = n - width - (m - 1)
        possible = (width >= 1) & (excess >= 0) & (m >= size) & ((d < anchor) | (m == size))
        totals: Floats = radii[m] + others[np.maximum(width - 1, 0), np.clip(excess, 0, n - 1)]
        totals[~possible] = np.inf
        return totals

    def _row(self, d: int, anchor: int, size: int, radii: Floats) -> Floats:
        row: Floats = self._options(d, anchor, size, radii)[1:].min(axis=1) * self._scale[1:]
        return np.asarray(np.maximum(self._free[d], np.concatenate([[np.inf], row])))

    def raised(self, node: _Node) -> tuple[list[int], list[float]] | None:
        """Sizes and radii that are impossible together; None where the node's own ones may be possible."""
        options = [self._options(d, node.anchor, node.size, radii) for d, radii in enumerate(node.radii)]
        sizes = [int(table[w].argmin()) for table, w in zip(options, node.widths, strict=False)]
        radii = np.array([row[m] for row, m in zip(node.radii, sizes, strict=True)])
        if self._possible(sizes, radii):
            return None
        step = 1.0 / self._scale[list(node.widths[: node.anchor + 1])]
        low, high = 0.0, self._target - node.value
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._possible(sizes, radii + middle * step):
                high = middle
            else:
                low = middle
        return sizes, (radii + low * step).tolist()

    def _possible(self, sizes: list[int], radii: Floats) -> bool:
        far = np.zeros((self._n, self._n), np.bool_)
        for d, (size, radius) in enumerate(zip(sizes, radii.tolist(), strict=True)):
            far |= self._pairs[d] > radius
            last = d + 1 == len(sizes) or sizes[d + 1] < size
            if last and not may_have_clique(far, size, _NODES):
                return False
        return True

    def children(self, node: _Node, impossible: tuple[list[int], list[float]]) -> Iterator[_Node]:
        """One branch for each stage of the chain: a larger radius there, or a smaller cluster."""
        for d, (size, radius) in enumerate(zip(*impossible, strict=True)):
            above = self._losses[d][np.searchsorted(self._losses[d], radius, side="right") :]
            row = node.radii[d].copy()
            row[size:] = np.maximum(row[size:], above[0] if len(above) else np.inf)
            radii = (*node.radii[:d], row, *node.radii[d + 1 :])
            table = node.table.copy()
            table[d] = self._row(d, node.anchor, node.size, row)
            yield self._node(node.anchor, node.size, radii, table)
