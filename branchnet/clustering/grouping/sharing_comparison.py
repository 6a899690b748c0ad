"""What sharing the first stages between groups adds over whole networks for groups, at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.budgets.tree_sizes import Costs, HeadCosts
from branchnet.clustering.exact.dynamic_program import best_groupings
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE
from branchnet.clustering.search_problem import Problem, make_problem
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.tree_search import pareto_front
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError


@dataclass(frozen=True)
class Point:
    """One tree's size and cost.

    Attributes:
        size: its size.
        cost: its clustering cost.
        tree: the tree.
    """

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
        """What branching saves.

        Returns:
            For each grouping by how much the best tree that is not larger costs less; never negative.
        """
        return tuple(
            group.cost - min(tree.cost for tree in self.trees if tree.size <= group.size * (1 + 1e-12))
            for group in self.groups
        )


def compare_sharing(
    affinity: Affinity | StageLosses,
    costs: Costs,
    *,
    unit: str = "params",
    head_costs: HeadCosts | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    stage_weights: Sequence[float] | str | None = None,
) -> SharingComparison:
    """Compute both fronts exactly, for as many tasks as the exact method takes.

    Args:
        affinity: as `search` takes it.
        costs: as `search` takes them.
        unit: the unit in which sizes are counted.
        head_costs: as `search` takes them.
        objective: as `search` takes it.
        stage_weights: as `search` takes them.

    Returns:
        Both fronts.

    Raises:
        BranchnetError: too many tasks for the exact method.
        BudgetError: costs that do not fit the affinities.
        AffinityError: as `search`.
    """
    problem = make_problem(affinity, costs, unit, head_costs, objective, stage_weights)
    if not isinstance(problem, Problem):
        raise AffinityError("objective='stitch' is no sum over clusters; expected another one, such as 'medoid'")
    losses = problem.losses.plain
    groups: list[Point] = []
    for _, labels in best_groupings(losses, problem.rules):
        tree = Tree.from_labels(losses.tasks, [labels.tolist()] * losses.depth, problem.sizes.depths)
        cost = losses.tree_cost(tree)
        if not groups or cost < groups[-1].cost:
            groups.append(Point(problem.sizes.of_widths(tree.widths), cost, tree))
    front = pareto_front(losses, costs, unit=unit, head_costs=head_costs, method="exact")
    return SharingComparison(tuple(groups), tuple(map(_point, front)), unit, problem.objective)


def _point(result: SearchResult) -> Point:
    return Point(result.size, result.cost, result.tree)
