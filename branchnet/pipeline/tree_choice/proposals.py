"""The trees that a run tries: those that affinities propose, and some that nobody proposed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from branchnet.affinity import Affinity
from branchnet.clustering import Budget, SearchResult, Tree, clustering_cost, random_tree, search, tree_size
from branchnet.clustering.budgets import Costs, HeadCosts
from branchnet.errors import BudgetError

RANDOM_PROPOSALS = 2
SMALLER = 0.95
"""Share of a proposed tree's size below which each affinity proposes another one, often as good."""


@dataclass(frozen=True)
class Proposal:
    """A tree, and who proposed it.

    Attributes:
        tree: the tree.
        by: in words, e.g. `RSA (mean-pair)`.
        predicted: what the stitching losses predict: the mean over tasks of the loss at the last change of donor, 0 as
            the own network and 1 as a constant predictor; None where they were not measured.
        found: the search that found it; None for one that no search proposed.
    """

    tree: Tree
    by: str
    predicted: float | None = None
    found: SearchResult | None = None


@dataclass(frozen=True)
class Limits:
    """What decides how large a tree is, and how large it may be.

    Attributes:
        costs: of the stages in the budget's unit.
        heads: of the heads.
        budget: the size that a tree may have.
        stitch_sizes: of one stitch at each location in that unit; None where it is not known.
    """

    costs: Costs
    heads: HeadCosts
    budget: Budget
    stitch_sizes: Sequence[float] | None

    def size(self, tree: Tree) -> float:
        """The size of a tree in the budget's unit, stitches and heads included."""
        return tree_size(tree, self.costs, head_costs=self.heads, unit=self.budget.unit, stitch_sizes=self.stitch_sizes)

    def search(self, affinity: Affinity, objective: str, seed: int, budget: Budget | None = None) -> SearchResult:
        """The best tree by an affinity and an objective."""
        return search(
            affinity,
            self.costs,
            budget or self.budget,
            head_costs=self.heads,
            objective=objective,
            stitch_sizes=self.stitch_sizes,
            seed=seed,
        )


def most_proposals(searches: int) -> int:
    """How many trees are proposed at most by so many searches."""
    return 2 * searches + 1 + RANDOM_PROPOSALS


def propose_trees(
    affinities: Mapping[str, tuple[Affinity, Sequence[str]]], limits: Limits, seed: int
) -> tuple[Proposal, ...]:
    """Search with every affinity and objective, near the budget, and add the shared tree and random ones.

    Args:
        affinities: by what they are called, each with the objectives to search with. The stitching losses, where they
            are among them, are directed.
        limits: sizes, and the budget.
        seed: of the random trees.

    Returns:
        different trees, each with its first proposer; that of the first affinity comes first.

    Raises:
        BudgetError: no tree fits the budget.
    """
    losses = next((affinity for affinity, _ in affinities.values() if affinity.directed), None)
    found: dict[Tree, Proposal] = {}
    for tree, by, result in _proposals(affinities, limits, seed):
        if tree not in found:
            predicted = None if losses is None else clustering_cost(tree, losses, objective="stitch") / len(tree.tasks)
            found[tree] = Proposal(tree, by, predicted, result)
    return tuple(found.values())


def _proposals(
    affinities: Mapping[str, tuple[Affinity, Sequence[str]]], limits: Limits, seed: int
) -> Iterator[tuple[Tree, str, SearchResult | None]]:
    first = None
    for name, (affinity, objectives) in affinities.items():
        for objective in objectives:
            result = limits.search(affinity, objective, seed)
            first = first or result
            yield result.tree, f"{name} ({objective})", result
            try:
                smaller = limits.search(affinity, objective, seed, Budget(SMALLER * result.size, limits.budget.unit))
            except BudgetError:  # it is among the smallest trees that there are
                continue
            yield smaller.tree, f"{name} ({objective}, smaller)", smaller
    if first is None:
        return
    tasks, depth = first.tree.tasks, first.tree.depth
    generator = random.Random(seed)
    draw = partial(random_tree, tasks, depth, seed=generator, costs=limits.costs, head_costs=limits.heads)
    drawn = [draw(budget=limits.budget) for _ in range(RANDOM_PROPOSALS)]
    for tree, by in [(Tree.shared(tasks, depth), "sharing everything"), *((tree, "chance") for tree in drawn)]:
        if limits.size(tree) <= first.limit:  # they were drawn without their stitches
            yield tree, by, None
