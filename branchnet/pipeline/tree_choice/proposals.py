"""The trees that a run tries: those that affinities propose, and some that nobody proposed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from typing import TypeAlias

from branchnet.affinity import Affinity
from branchnet.clustering import Budget, SearchResult, Tree, clustering_cost, random_tree, search, tree_size
from branchnet.clustering.budgets.task_limits import task_limit
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit, size_model
from branchnet.clustering.search_result import Resource
from branchnet.clustering.stitching.stitch_sizes import StitchSizes
from branchnet.errors import BudgetError
from branchnet.pipeline.tree_choice.work import FEWEST_TREES, MOST_TREES, Work

RANDOM_PROPOSALS = 2
"""Random trees among the first proposals; more of them come at the end."""
SMALLER = 0.95
"""Share of a proposed tree's size below which each affinity proposes another one, often as good."""
SMALLEST = 6
"""How often each affinity goes on to a smaller tree."""


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
        costs: of the stages in the budget's units.
        heads: of the heads.
        budget: the size that a tree may have.
        stitch_sizes: of one stitch at each location in these units; None where it is not known.
        depths: how many stages the tasks pass that leave the trunk early.
    """

    costs: CostsByUnit
    heads: HeadCostsByUnit
    budget: Budget
    stitch_sizes: StitchSizes | None
    depths: Mapping[str, int] = field(default_factory=dict)

    def size(self, tree: Tree, unit: str = "") -> float:
        """The size of a tree, by default in the first budget's unit, stitches and heads included."""
        unit = unit or self.budget.unit
        return tree_size(tree, self.costs, head_costs=self.heads, unit=unit, stitch_sizes=self.stitch_sizes)

    def fits(self, tree: Tree, found: SearchResult) -> bool:
        """Whether a tree is within the limits that another one was found under."""
        return all(one.size <= one.limit for one in self.needed(tree, found.resources))

    def needed(self, tree: Tree, resources: Sequence[Resource]) -> tuple[Resource, ...]:
        """What a tree needs of the resources that another one was found with."""
        return tuple(one._replace(size=self._need(tree, one)) for one in resources)

    def _need(self, tree: Tree, one: Resource) -> float:
        if not one.tasks:
            return self.size(tree, one.unit)
        model = size_model(self.costs, tree.tasks, one.unit, self.heads, self.stitch_sizes, tree.depths)
        budget = Budget(one.limit, one.unit, tasks=one.tasks)
        return task_limit(budget, tree.tasks, model, self.costs, self.heads).size(tree)

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


def propose_trees(
    affinities: Mapping[str, tuple[Affinity, Sequence[str]]], limits: Limits, seed: int, work: Work
) -> tuple[Proposal, ...]:
    """Search with every affinity and objective, near the budget, and add the shared tree, groups and random ones.

    Args:
        affinities: by what they are called, each with the objectives to search with. The stitching losses, where they
            are among them, are directed.
        limits: sizes, and the budget.
        seed: of the random trees.
        work: what it takes to measure them: as many are proposed as take about as long as the affinities, 9 to 36 where
            there are so many within the budget.

    Returns:
        different trees, each with its first proposer; that of the first affinity comes first.

    Raises:
        BudgetError: no tree fits the budget.
    """
    losses = next((affinity for affinity, _ in affinities.values() if affinity.directed), None)
    found: dict[Tree, Proposal] = {}
    done = 0.0
    for tree, by, result in _proposals(affinities, limits, seed):
        if tree in found:
            continue
        done += work.of(tree)
        if len(found) >= FEWEST_TREES and done > work.affinities:
            break
        predicted = None if losses is None else clustering_cost(tree, losses, objective="stitch") / len(tree.tasks)
        found[tree] = Proposal(tree, by, predicted, result)
        if len(found) == MOST_TREES:
            break
    return tuple(found.values())


_Proposed: TypeAlias = tuple[Tree, str, SearchResult | None]


def _proposals(
    affinities: Mapping[str, tuple[Affinity, Sequence[str]]], limits: Limits, seed: int
) -> Iterator[_Proposed]:
    """Trees within the budget, the most promising first, some of them more than once; none is made before its turn."""
    searches = [
        _shrinking(name, affinity, objective, limits, seed)
        for name, (affinity, objectives) in affinities.items()
        for objective in objectives
    ]
    first: SearchResult | None = None
    for search_on in searches:  # of each its best tree and a smaller one
        for proposed in islice(search_on, 2):
            first = first or proposed[2]
            yield proposed
    if first is None:
        return
    tasks, depth = first.tree.tasks, first.tree.depth
    early = first.tree.depths
    draw = partial(
        random_tree,
        tasks,
        depth,
        seed=random.Random(seed),
        costs=limits.costs,
        head_costs=limits.heads,
        depths=early,
    )
    drawn = ((tree, "chance", None) for tree in drawn_trees(partial(draw, budget=limits.budget), MOST_TREES))
    shared = (Tree.shared(tasks, depth, early), "sharing everything", None)
    grouped = ((_whole_groups(first.tree, clusters), "whole groups", None) for clusters in first.tree.partitions)
    smaller = (proposed for proposals in zip_longest(*searches) for proposed in proposals if proposed is not None)
    for proposed in chain([shared], islice(drawn, RANDOM_PROPOSALS), smaller, grouped, drawn):
        if limits.fits(proposed[0], first):  # some were made without their stitches
            yield proposed


def drawn_trees(draw: Callable[[], Tree], count: int) -> Iterator[Tree]:
    """Random trees; none more where those within the budget are too rare to be drawn.

    Args:
        draw: draws one; some tree fits.
        count: how many.
    """
    with suppress(BudgetError):
        for _ in range(count):
            yield draw()


def _smaller(size: float, budget: Budget) -> Budget:
    """Less than a size of all tasks in the first budget's unit; the others, and those of some tasks, as they are."""
    others = budget.also if not budget.tasks else [one for one in budget.each if one.tasks or one.unit != budget.unit]
    return Budget(SMALLER * size, budget.unit, also=tuple(others))


def _shrinking(name: str, affinity: Affinity, objective: str, limits: Limits, seed: int) -> Iterator[_Proposed]:
    """The best tree by an affinity, and ever smaller ones."""
    result = limits.search(affinity, objective, seed)
    yield result.tree, f"{name} ({objective})", result
    for _ in range(SMALLEST):
        try:
            result = limits.search(affinity, objective, seed, _smaller(result.size, limits.budget))
        except BudgetError:  # it is among the smallest trees that there are
            return
        yield result.tree, f"{name} ({objective}, smaller)", result


def _whole_groups(tree: Tree, groups: Sequence[Sequence[str]]) -> Tree:
    """The tree of one whole network for each group, whose tasks leave it where those of `tree` do."""
    stages = [
        [
            part
            for group in groups
            for part in (
                [task for task in group if tree.depth_of(task) > stage],
                *([task] for task in group if tree.depth_of(task) <= stage),
            )
            if part
        ]
        for stage in range(tree.depth)
    ]
    return Tree(tree.tasks, stages, tree.depths)
