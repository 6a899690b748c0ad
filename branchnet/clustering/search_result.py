"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from branchnet.clustering.trees.tree import Tree
from branchnet.stages.costs import FirstDifference


@dataclass(frozen=True)
class SearchResult:
    """A tree, what it costs, and how good it is known to be.

    Attributes:
        tree: the best tree that was found.
        cost: its clustering cost under `objective`.
        size: its size in `unit`, heads included where they are known.
        lower_bound: no tree that meets the budget and the constraints costs less.
        proven: whether no such tree costs less than this one, by more than a tie.
        method: the method that found the tree.
        why: why that method was chosen, and how the search ended.
        objective: name of the objective.
        unit: `"params"`, `"flops"` or `"latency"`.
        limit: the budget as an absolute number; infinite for a point of a front.
        uncounted: where the unit is `"flops"`, the operators of the networks whose multiply-adds count as nothing.
        first_difference: where the networks' structures part, if less than half of the parameters lies before.

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
    first_difference: FirstDifference | None = field(default=None, compare=False)

    @property
    def gap(self) -> float:
        """How far the cost may be above the best one, as a share of the cost; 0 if proven."""
        if self.proven or self.cost == self.lower_bound:
            return 0.0
        return (self.cost - self.lower_bound) / abs(self.cost) if self.cost else float("inf")
