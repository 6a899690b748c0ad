"""What a search returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.sharing.task_sharing import Sharing
from branchnet.clustering.trees.tree import Tree
from branchnet.clustering.trees.tree_checks import Cluster, Partition
from branchnet.stages.costs import FirstDifference
from branchnet.utils.visible_text import visible


class ForcedPair(NamedTuple):
    """A task that is stitched to a donor on which it does little better than a constant predictor.

    Attributes:
        location: where, by name.
        donor: whose features arrive.
        task: whose rest is fed with them.
        loss: the stitching loss, 1 for a constant predictor.
    """

    location: str
    donor: str
    task: str
    loss: float

    def __str__(self) -> str:
        task, donor = visible(self.task), visible(self.donor)
        return f"{task} on features of {donor} at {visible(self.location)} (loss {self.loss:.3g})"


class Resource(NamedTuple):
    """What a tree needs of something that a budget limits.

    Attributes:
        unit: `"params"`, `"flops"` or `"latency"`.
        size: what the tree needs, heads included where they are known.
        limit: the budget as an absolute number; infinite for a point of a front.
        tasks: those whose nodes and heads count; empty = all.
    """

    unit: str
    size: float
    limit: float
    tasks: tuple[str, ...] = ()

    @property
    def whose(self) -> str:
        """The tasks that count, in words; empty where all do."""
        return f" for {'+'.join(map(visible, self.tasks))}" if self.tasks else ""


@dataclass(frozen=True)
class Verdict:
    """What an objective says of a tree.

    Attributes:
        cost: its cost.
        surcharge: what solvers add to it for the forced pairs.
        forced: the pairs near a constant predictor.
        donors: for each stage the donors of its nodes, where the objective chooses them.
    """

    cost: float
    surcharge: float = 0.0
    forced: tuple[ForcedPair, ...] = ()
    donors: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class SearchResult:
    """A tree, what it costs, and how good it is known to be.

    Attributes:
        tree: the best tree that was found; None where sharing need not be nested, see `sharing`.
        cost: its clustering cost under `objective`.
        size: its size in `unit`, heads included where they are known.
        lower_bound: no tree that meets the budget and the constraints, with no more forced pairs, costs less.
        proven: whether no such tree costs less than this one, by more than a tie, and none has fewer forced pairs.
        method: the method that found the tree.
        why: why that method was chosen, and how the search ended.
        objective: name of the objective.
        unit: `"params"`, `"flops"` or `"latency"`.
        limit: the budget as an absolute number; infinite for a point of a front.
        uncounted: where the unit is `"flops"`, the operators of the networks whose multiply-adds count as nothing.
        forced: with stitching losses, pairs near a constant predictor (a loss of 0.9 or more) that no tree within the
            budget does without: (location, donor, task, loss) each. Donors are chosen so that they are as few as can
            be, so where they are avoided the cost may be above `clustering_cost`, which only minimises the loss.
        donors: with `objective="stitch"`, the donors that the cost is meant for, as `build(donors=)` takes them.
        also: with several budgets, size and limit in the units of the further ones.
        first_difference: where the networks' structures part, if less than half of the parameters lies before.
        lossless: for each stage the clusters of tasks with identical weights up to its end, as far as staged networks
            or their costs said it: one copy of the stage serves these tasks without any loss.
        sharing: the best sharing that was found, of a search with `nested=False`; otherwise None.

    >>> affinity = branchnet.Affinity(["depth", "edges"], ["layer1"], np.array([[[1.0, 0.8], [0.8, 1.0]]]))
    >>> result = branchnet.search(affinity, [1000.0], "1500 params", objective="mean-pair")
    >>> isinstance(result, branchnet.SearchResult), result.tree.widths, result.size, result.limit
    (True, (1,), 1000.0, 1500.0)
    >>> round(result.cost, 6), result.gap
    (0.2, 0.0)
    """

    tree: Tree
    cost: float
    size: float
    lower_bound: float
    proven: bool
    method: str
    why: str
    objective: str
    unit: str
    limit: float
    uncounted: tuple[str, ...] = ()
    forced: tuple[ForcedPair, ...] = ()
    donors: tuple[tuple[str, ...], ...] | None = None
    also: tuple[Resource, ...] = ()
    first_difference: FirstDifference | None = field(default=None, compare=False)
    lossless: tuple[Partition, ...] = ()
    sharing: Sharing | None = None

    @property
    def resources(self) -> tuple[Resource, ...]:
        """Size and limit in every unit, that of the first budget first."""
        return (Resource(self.unit, self.size, self.limit), *self.also)

    @property
    def budget(self) -> Budget | None:
        """The limits as a budget in absolute numbers; None for a point of a front."""
        if not math.isfinite(self.limit):
            limited = [Budget(one.limit, one.unit, tasks=one.tasks) for one in self.also if math.isfinite(one.limit)]
            return dataclasses.replace(limited[0], also=tuple(limited[1:])) if limited else None
        also = tuple(Budget(one.limit, one.unit, tasks=one.tasks) for one in self.also)
        return Budget(self.limit, self.unit, also=also)

    @property
    def gap(self) -> float:
        """How far the cost may be above the best one, as a share of the cost; 0 if proven."""
        if self.proven or self.cost == self.lower_bound:
            return 0.0
        return (self.cost - self.lower_bound) / abs(self.cost) if self.cost else float("inf")

    def forced_note(self) -> str:
        """Say which pairs near a constant predictor the budget forces to share.

        Returns:
            A sentence; empty where there are none.
        """
        if not self.forced:
            return ""
        none, pairs = "no tree" if self.proven else "no tree that was found", "; ".join(map(str, self.forced))
        return f"near a constant predictor, but {none} within the budget does without: {pairs}"

    def lossless_note(self) -> str:
        """Say which stages are shared by tasks with identical weights.

        Returns:
            A sentence; empty where there are none.
        """
        runs: dict[Cluster, list[int]] = {}
        for stage, clusters in enumerate(self.lossless):
            for cluster in clusters:
                runs.setdefault(cluster, []).append(stage)
        shown = [
            f"stage{'s' if stages[1:] else ''} {'-'.join(map(str, dict.fromkeys((stages[0], stages[-1]))))} of "
            f"{', '.join(map(visible, cluster))}"
            for cluster, stages in runs.items()
        ]
        return f"lossless, as the weights are identical: {'; '.join(shown)}" if shown else ""

    def __str__(self) -> str:
        bound = "proven" if self.proven else f"lower bound {self.lower_bound:.6g}"
        sizes = ", ".join(map(_shown, self.resources))
        lines = [str(self.sharing or self.tree), f"size {sizes}, cost {self.cost:.6g} ({self.objective}; {bound})"]
        return "\n".join([*lines, *filter(None, [self.lossless_note(), self.forced_note()])])


def _shown(one: Resource) -> str:
    return f"{one.size:.6g} {one.unit}{one.whose}"


def lossless_clusters(tree: Tree, identical: Sequence[Sequence[Sequence[str]]]) -> tuple[Partition, ...]:
    """For each stage the clusters of several tasks with identical weights up to its end.

    Args:
        tree: the tree.
        identical: for each stage the groups of such tasks; empty where they are not known.
    """
    if len(identical) != tree.depth:
        return ()
    return tuple(
        tuple(c for c in clusters if len(c) > 1 and any(set(c) <= set(group) for group in groups))
        for clusters, groups in zip(tree.partitions, identical, strict=True)
    )
