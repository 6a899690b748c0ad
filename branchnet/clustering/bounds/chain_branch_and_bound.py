"""A tighter lower bound for objectives by the largest loss: one chain of nested clusters through the stages.

Stage bounds choose their tasks again at every stage. But the clusters that hold one cluster of stage a, the anchor,
form a chain through stages 0..a, and the tasks of the chain's cluster of stage d are together at all stages up to d:
they are a clique in the graphs of all those stages at once. So not all radii (diameters of the chain's clusters) and
sizes are possible together.

Branch and bound over ranges of chains (see `chain_tables`), first on the anchor, the largest cluster of the last stage
that has one of more than four tasks, and its size. At a node, pairs that are too far apart over the stages together are
excluded; radii at which no clique is left at some stage are raised; then radii and sizes are sought that are impossible
together, as large as can be. One stage must break them: a first branch where the first stage does, a second where it
keeps to them and the next stage breaks them, and so on. The bound is the least of all open nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.chain_tables import Bools, ChainRange, ChainTables, Floats
from branchnet.clustering.bounds.clique_bounds import StageRadii, first_place, may_have_clique
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.constraints import Rules

_LARGEST = 200
# Steps of one search for cliques: few inside bisections, many where a node would otherwise be given up.
_NODES, _MANY_NODES = 300, 5000
_HALVINGS, _PUSHES = 6, 4
# A gain of less than this share of the target is worth less than branching at once.
_WORTH = 1e-4


def chain_bounds(
    losses: StageLosses,
    radii: Sequence[StageRadii],
    rules: Rules,
    sizes: Floats,
    limit: float,
    target: float,
    expansions: int,
) -> Iterator[float]:
    """Rising lower bounds on the cost of every tree that fits, offset not included; none for too many tasks.

    0 for each range that is bounded before the first one is branched on.

    Args:
        losses, rules, sizes, limit: as for `lower_bound`; losses of the kind `max`, none negative.
        radii: for every stage.
        target: cost of a known tree, which the bounds never exceed.
        expansions: how many nodes are branched on for 40 tasks; fewer for more tasks.
    """
    n = len(losses.tasks)
    if not 2 <= n <= _LARGEST:
        return
    tables = ChainTables(losses, radii, sizes, limit, target)
    widths = WidthBounds(rules, sizes, limit)
    highest, number = min(target, widths.least(tables.loose, target)[0]), count()
    search = _Search(tables, widths, highest)
    heap: list[tuple[float, int, _Node]] = []
    for node in map(search.node, tables.ranges()):
        yield 0.0
        if node is not None:
            heapq.heappush(heap, (node.value, next(number), node))
    for _ in range(min(expansions, round(expansions * (40 / n) ** 2))):
        if not heap:
            break
        yield heap[0][0]
        children = search.children(heapq.heappop(heap)[2])
        if children is None:
            return
        for child in children:
            heapq.heappush(heap, (child.value, next(number), child))
    yield heap[0][0] if heap else highest


@dataclass(frozen=True, eq=False)
class _Node:
    """A range of chains with its tables (D, N + 1), its bound and the widths that attain it."""

    chains: ChainRange
    table: Floats
    value: float
    widths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Search:
    """`highest`: nodes of this value and above do not matter."""

    tables: ChainTables
    widths: WidthBounds
    highest: float

    def node(self, chains: ChainRange) -> _Node | None:
        """The bounded range; None where it does not matter."""
        table = self.tables.table(chains)
        if self.tables.priced(table)[0] >= self.highest:
            return None
        value, widths = self.widths.least(table, self.highest)
        return _Node(chains, table, value, widths) if widths else None

    def children(self, node: _Node) -> list[_Node] | None:
        """Nodes that cover the range, with larger bounds; None where its bound cannot be raised."""
        far = self.tables.too_far(node.chains, node.table)
        if not self._possible(far, node.chains.least, node.chains.most):
            return []
        shaved = self._shaved(node.chains, far)
        better = node if shaved is node.chains else self.node(shaved)
        if better is None or better.value > node.value + _WORTH * self.highest:
            return [better] if better else []
        sizes = self.tables.likely_sizes(node.chains, node.widths)
        radii = self._impossible(node, far, sizes)
        return None if radii is None else list(filter(None, map(self.node, self._branches(node, sizes, radii))))

    def _shaved(self, chains: ChainRange, far: Sequence[Bools]) -> ChainRange:
        """The range with each stage's radii raised to where cliques of the least size are left at all stages."""
        shaved = chains
        for d in chains.stages:
            losses, size = self.tables.losses[d], chains.least[d]

            def holds(place: int, d: int = d, losses: Floats = losses) -> bool:
                most = [*chains.most[:d], min(chains.most[d], losses[place]), *chains.most[d + 1 :]]
                return self._possible(far, chains.least, most)

            now = int(np.searchsorted(losses, chains.radii[d][size]))
            place = first_place(holds, now, len(losses) - 1)
            if place > now:
                shaved = shaved.above(d, size, float(losses[place]))
        return shaved

    def _impossible(self, node: _Node, far: Sequence[Bools], sizes: Sequence[int]) -> Floats | None:
        """Largest radii that no chain with clusters of these sizes keeps to; None if it may keep to the node's own."""
        chains = node.chains
        radii = np.array([chains.radii[d][size] for d, size in enumerate(sizes)])
        if self._possible(far, sizes, radii, _MANY_NODES):
            return None
        most, room = np.array(chains.most), self.highest - node.value
        step = 1.0 / self.tables.scale[list(node.widths[: chains.anchor + 1])]
        low, high = 0.0, room
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._possible(far, sizes, np.minimum(radii + middle * step, most)):
                high = middle
            else:
                low = middle
        pushed: Floats = np.minimum(radii + low * step, most)
        for d in chains.stages:
            self._push(pushed, d, min(radii[d] + room * step[d], most[d]), far, sizes)
        return pushed

    def _push(self, radii: Floats, d: int, high: float, far: Sequence[Bools], sizes: Sequence[int]) -> None:
        """Raise the impossible radius of stage d alone, in place, towards `high`."""
        for _ in range(_PUSHES):
            tried = radii.copy()
            tried[d] = (radii[d] + high) / 2
            if self._possible(far, sizes, tried):
                high = float(tried[d])
            else:
                radii[d] = tried[d]

    def _possible(
        self, far: Sequence[Bools], sizes: Sequence[int], radii: Sequence[float] | Floats, nodes: int = _NODES
    ) -> bool:
        """Whether there may be cliques of at least these sizes and at most these radii, one inside the other."""
        apart = np.zeros((self.tables.n, self.tables.n), np.bool_)
        for d, (size, radius) in enumerate(zip(sizes, radii, strict=True)):
            apart |= far[d] | (self.tables.pairs[d] > radius)
            last = d + 1 == len(sizes) or sizes[d + 1] < size
            if last and not may_have_clique(apart, size, nodes):
                return False
        return True

    def _branches(self, node: _Node, sizes: Sequence[int], radii: Floats) -> Iterator[ChainRange]:
        """One range for each stage that may be the first to break the radii; large gains come first."""
        broken = [node.chains.above(d, sizes[d], self._next_loss(d, radii[d])) for d in node.chains.stages]
        gains = [self.tables.table(chains)[d, node.widths[d]] for d, chains in enumerate(broken)]
        gains = [gain - node.table[d, node.widths[d]] for d, gain in enumerate(gains)]
        kept = node.chains
        for d in sorted(node.chains.stages, key=lambda d: -gains[d]):
            yield kept.above(d, sizes[d], self._next_loss(d, radii[d]))
            kept = kept.within(d, sizes[d], float(radii[d]))

    def _next_loss(self, stage: int, radius: float) -> float:
        losses = self.tables.losses[stage]
        place = int(np.searchsorted(losses, radius, side="right"))
        return float(losses[place]) if place < len(losses) else np.inf
