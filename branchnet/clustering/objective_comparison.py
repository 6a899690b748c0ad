"""What sharing the first stages between groups adds over whole networks for groups, at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.budgets import Costs, HeadCosts
from branchnet.clustering.exact.dynamic_program import best_groupings
from branchnet.clustering.objectives import StageLosses
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.tree_search import make_problem, pareto_front
from branchnet.clustering.trees.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One tree's size and cost."""

    size: float
    cost: float
    tree: Tree


@dataclass(frozen=True)
class SharingComparison:
    """The fronts of whole-network groups and of branched trees under one objective.

    Attributes:
        groups: the best grouping for every number of networks that improves on fewer networks, smallest first.
        trees: the Pareto front of trees, smallest first.
        unit: the unit of the sizes.
        objective: its name.
    """

    groups: tuple[Point, ...]
    trees: tuple[Point, ...]
    unit: str
    objective: str

    def saved(self) -> tuple[float, ...]:
        """For each grouping by how much the best tree that is not larger costs less; never negative."""
        return tuple(
            group.cost - min(tree.cost for tree in self.trees if tree.size <= group.size * (1 + 1e-12))
            for group in self.groups
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Cost against size of both fronts; return the axes."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 4), layout="constrained").add_subplot()
        for points, label in ((self.groups, "groups of whole networks"), (self.trees, "branched trees")):
            ax.step([p.size for p in points], [p.cost for p in points], where="post", marker="o", ms=3, label=label)
        ax.set_xlabel(self.unit)
        ax.set_ylabel(f"clustering cost ({self.objective})")
        ax.legend()
        return ax


def compare_sharing(
    affinity: Affinity | StageLosses,
    costs: Costs,
    *,
    unit: str = "params",
    head_costs: HeadCosts | None = None,
    objective: str = "mean-max",
    stage_weights: Sequence[float] | str | None = None,
) -> SharingComparison:
    """Both fronts, exactly; arguments and errors as `pareto_front`, for as many tasks as the exact method takes."""
    problem = make_problem(affinity, costs, unit, head_costs, objective, stage_weights)
    groups: list[Point] = []
    for _, labels in best_groupings(problem.losses, problem.rules):
        tree = Tree.from_labels(problem.losses.tasks, [labels.tolist()] * problem.losses.depth)
        cost = problem.losses.tree_cost(tree)
        if not groups or cost < groups[-1].cost:
            groups.append(Point(problem.sizes.of_widths(tree.widths), cost, tree))
    front = pareto_front(problem.losses, costs, unit=unit, head_costs=head_costs, method="exact")
    return SharingComparison(tuple(groups), tuple(map(_point, front)), unit, problem.objective)


def _point(result: SearchResult) -> Point:
    return Point(result.size, result.cost, result.tree)
