"""Whether a tree is likely to beat others of its size, from nothing but affinities and their uncertainty.

A tree that was searched for is always better than a random one by its own score; the question is by how much more than
the score's uncertainty. Where it is not, no tree of that size is likely to beat another, and nobody need train any.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering.constraints import Constraints, Rules, rules_of
from branchnet.clustering.objectives import CHANGES, DEFAULT_OBJECTIVE, clustering_cost, stage_losses
from branchnet.clustering.pairwise_estimates import expected_losses
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.stitching.stitch_losses import STITCH
from branchnet.clustering.trees.counting import enumerate_trees
from branchnet.clustering.trees.sampling import random_tree_of_widths
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, TreeError

Floats = npt.NDArray[np.float64]
RANDOM_TREES = 100
REPLICATES = 50
MOST_GROUPED = 8
SURE = 2.0
"""Standard errors from which on a difference counts."""


@dataclass(frozen=True)
class Advice:
    """What affinities say about a tree compared with others.

    Attributes:
        tree: the tree.
        objective: by which trees are judged.
        gain: what random trees of its widths cost more, in the mean.
        error: the standard error of `gain`, over replicates of the affinities; NaN where there are none. The sentences
            say twice as much.
        chance: what the best of these trees would gain by the noise of the affinities alone, in 95 of 100 cases: the
            tree was chosen for its score, so its own standard error says too little. NaN without replicates.
        clear: `gain` without what the sizes of clusters alone cost, were all pairs of a stage equally similar.
        better_than: share of those random trees that cost more; NaN where there is no other tree of its widths.
        shared: what the fully shared network costs more.
        shared_error: the standard error of `shared`.
        groups: what the best groups of tasks with a network of their own cost more that have no more nodes in all; None
            where there are none, or more than 8 tasks.
        unit: what costs are in, in words.
        excluded: whether constraints exclude the fully shared network.
        constrained: whether there were constraints.

    >>> tree = branchnet.Tree.grouped([["a", "b"], ["c"]], 1)
    >>> unit = "in units of dissimilarity"
    >>> advice = branchnet.Advice(tree, "mean-pair", 0.3, 0.1, 0.2, 0.3, 1.0, 0.2, 0.1, None, unit)
    >>> advice.distinct
    True
    >>> advice.sentences[0].startswith("By mean-pair, random trees of its size cost 0.3 (± 0.2) more")
    True
    """

    tree: Tree
    objective: str
    gain: float
    error: float
    chance: float
    clear: float
    better_than: float
    shared: float
    shared_error: float
    groups: float | None
    unit: str
    excluded: bool = False
    constrained: bool = False

    @property
    def distinct(self) -> bool:
        """Whether the tree is better than random ones of its size by more than chance explains, as far as is known."""
        return self.gain > 0 and self.clear > 0 and not self.clear <= self.chance

    @property
    def sentences(self) -> tuple[str, str, str]:
        """What the affinities tell about trees of this size, about sharing everything or in groups, and what not."""
        return self._about_size(), self._about_others(), self._about_training()

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def _about_size(self) -> str:
        if np.isnan(self.better_than):
            return (
                "No other tree of this size that the constraints allow was drawn."
                if self.constrained
                else "There is no other tree of this size."
            )
        known = "" if np.isnan(self.chance) else f" (chance alone explains up to {self.chance:.2g})"
        about = "" if np.isnan(self.error) else f" (± {SURE * self.error:.2g})"
        than = f"random trees of its size cost {self.gain:.3g}{about} more {self.unit}{known}"
        if self.distinct and not np.isnan(self.chance):
            return f"By {self.objective}, {than}; {self.better_than:.0%} of them are worse."
        if self.distinct:
            return f"By {self.objective}, {than}; how sure that is is not known, for the affinities hold no replicates."
        if self.gain > 0:
            return f"No tree of this size is likely to beat another here: by {self.objective}, {than}."
        less = f"they cost {-self.gain:.3g} less"
        return f"By {self.objective}, this tree is no better than random ones of its size: {less}."

    def _about_others(self) -> str:
        as_good = self.shared <= SURE * self.shared_error if self.shared_error > 0 else self.shared <= 0
        everything = "Sharing everything, which the constraints exclude," if self.excluded else "Sharing everything"
        found = f"{everything} is predicted to " + ("be as good" if as_good else f"cost {self.shared:.3g} more")
        if self.groups is None:
            return f"{found}."
        groups = "to be as good" if self.groups <= 0 else f"to cost {self.groups:.3g} more"
        return f"{found}, and the best groups of tasks with networks of their own, of as many nodes, {groups}."

    def _about_training(self) -> str:
        if self.unit == PERCENT:
            return "These are estimates from pairs that were trained; trees of more than two tasks were not."
        if self.objective in ("gain", "transfer"):
            return "Nothing here was trained; compare the tree with the fully shared network before relying on it."
        return (
            "Similarities cannot say that sharing helps, and order trees of equal size little better than chance on "
            "most data: compare the tree with random ones (branchnet.compare) where it matters."
        )


PERCENT = "percent of the tasks' metrics"


def advise(
    tree: Tree | SearchResult,
    affinity: Affinity | PairMeasurements,
    *,
    objective: str | None = None,
    constraints: Constraints | None = None,
    random_trees: int = RANDOM_TREES,
    seed: int = 0,
) -> Advice:
    """Say in three sentences what affinities can and cannot tell about a tree before anything is trained.

    Args:
        tree: a tree, or what `search` found.
        affinity: what it was found by; with `samples` (measured with `bootstrap`), differences get errors.
        objective: how trees are judged; None = the result's, or the default of `search`.
        constraints: those of the search: random trees and groups are drawn among what they allow.
        random_trees: how many trees of the same widths are drawn; fewer where there are fewer, or where constraints
            allow few of those that are drawn.
        seed: of the draws.

    Returns:
        The differences, and the sentences, which `print` shows.

    Raises:
        AffinityError: an objective that does not fit the affinities, or fewer than 1 random tree.
        TreeError: other tasks or another depth; a tree that the constraints exclude.

    >>> values = np.array([[[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.2, 0.1], [0.1, 0.2, 1.0, 0.8], [0.2, 0.1, 0.8, 1.0]]])
    >>> affinity = branchnet.Affinity(["a", "b", "c", "d"], ["only"], values)
    >>> found = branchnet.search(affinity, [1.0], "50% params")
    >>> advice = branchnet.advise(found, affinity)
    >>> round(advice.gain, 2), advice.better_than                # against the six others of two nodes
    (0.9, 1.0)
    """
    if random_trees < 1:
        raise AffinityError(f"random_trees is {random_trees}; expected at least 1")
    chosen = tree if isinstance(tree, Tree) else tree.tree
    if chosen is None:  # of a search for sharing that is not nested
        raise TreeError("the result is of sharing that is not nested; expected a tree")
    measured = isinstance(affinity, PairMeasurements)
    named = tree.objective if isinstance(tree, SearchResult) else DEFAULT_OBJECTIVE
    judged = "expected performance" if measured else objective or named
    rules = None if constraints is None else rules_of(constraints, chosen.tasks, chosen.depth)
    if not _allowed(chosen, rules):
        raise TreeError(f"the tree {chosen.partitions} is excluded by {constraints}; expected one that they allow")
    others = _others_of_size(chosen, rules, random_trees, seed)
    groups = [one for one in _groups(chosen) if _allowed(one, rules)]
    shared_tree = Tree.shared(chosen.tasks, chosen.depth)
    first = 2 + len(groups)
    compared = [chosen, shared_tree, *groups, *others]
    costs = np.array([_costs(compared, one, judged) for one in _with_replicates(affinity)])  # (1 + replicates, trees)
    gains = costs[:, first:].mean(1) - costs[:, 0] if others else np.zeros(len(costs))
    equal = np.array(_costs(compared, _equal_pairs(affinity), judged))
    size_alone = float(equal[first:].mean() - equal[0]) if others else 0.0
    shared = costs[:, 1] - costs[:, 0]
    return Advice(
        tree=chosen,
        objective=judged,
        gain=float(gains[0]),
        error=_error(gains[1:]),
        chance=_chance(np.delete(costs, range(1, first), axis=1)),
        clear=float(gains[0]) - size_alone,
        better_than=float((costs[0, first:] > costs[0, 0]).mean()) if others else float("nan"),
        shared=float(shared[0]),
        shared_error=_error(shared[1:]),
        groups=float(costs[0, 2:first].min() - costs[0, 0]) if groups else None,
        unit=_unit(affinity),
        excluded=not _allowed(shared_tree, rules),
        constrained=rules is not None,
    )


def _unit(affinity: Affinity | PairMeasurements) -> str:
    if isinstance(affinity, PairMeasurements):
        return PERCENT
    if affinity.measure.startswith("stitch"):
        return "in units of a constant answer's loss"
    return "in shares of their losses" if affinity.measure.startswith(CHANGES) else "in units of dissimilarity"


def _allowed(tree: Tree, rules: Rules | None) -> bool:
    return rules is None or all(rules.allows(stage, labels) for stage, labels in enumerate(tree.labels()))


def _others_of_size(tree: Tree, rules: Rules | None, count: int, seed: int) -> list[Tree]:
    """Random trees of its widths: fewer than asked for where few are drawn that the constraints allow.

    Tasks that are together at all stages are drawn as one.
    """
    source, drawn = random.Random(seed), dict[Tree, None]()
    groups = _inseparable(tree.tasks, rules)
    for _ in range((5 if rules is None else 20) * count):
        one = random_tree_of_widths(tuple(groups), tree.widths, source, tree.depths)
        other = one if len(groups) == len(tree.tasks) else _with_groups(tree.tasks, one, groups)
        if other != tree and _allowed(other, rules):
            drawn[other] = None
        if len(drawn) >= count:
            break
    return list(drawn)


def _inseparable(tasks: Sequence[str], rules: Rules | None) -> dict[str, list[str]]:
    """The tasks by the first of those that they are with at all stages."""
    found: dict[str, list[str]] = {}
    for number, task in enumerate(tasks):
        first = number if rules is None else int(np.argmax(rules.together[:, number].all(axis=0)))
        found.setdefault(tasks[min(first, number)], []).append(task)
    return found


def _with_groups(tasks: Sequence[str], tree: Tree, groups: Mapping[str, Sequence[str]]) -> Tree:
    """The tree of all tasks in which those of a group are where the group's first task is."""
    partitions = [[[t for one in cluster for t in groups[one]] for cluster in stage] for stage in tree.partitions]
    return Tree(tasks, partitions)


def _groups(tree: Tree) -> list[Tree]:
    """All ways to divide the tasks into as many whole networks as the tree's nodes make."""
    whole = sum(tree.widths) // tree.depth
    if len(tree.tasks) > MOST_GROUPED or not 1 < whole < len(tree.tasks):
        return []
    partitions = (one.partitions[0] for one in enumerate_trees(tree.tasks, 1) if one.widths[0] == whole)
    return [Tree.grouped(partition, tree.depth) for partition in partitions]


def _with_replicates(affinity: Affinity | PairMeasurements) -> list[Affinity | PairMeasurements]:
    if isinstance(affinity, PairMeasurements) or affinity.samples is None:
        return [affinity]
    drawn = affinity.replicates()[:REPLICATES]
    return [affinity, *(replace(affinity, values=values, samples=None, standard_errors=None) for values in drawn)]


def _costs(trees: list[Tree], affinity: Affinity | PairMeasurements, objective: str) -> list[float]:
    if not isinstance(affinity, PairMeasurements) and objective == STITCH:
        return [clustering_cost(tree, affinity, objective=objective) for tree in trees]
    losses = expected_losses(affinity) if isinstance(affinity, PairMeasurements) else stage_losses(affinity, objective)
    return [losses.tree_cost(tree) for tree in trees]


def _equal_pairs(affinity: Affinity | PairMeasurements) -> Affinity | PairMeasurements:
    """The same with each stage's mean in place of all pairs'."""
    values = affinity.gain if isinstance(affinity, PairMeasurements) else affinity.values
    others = ~np.eye(values.shape[1], dtype=np.bool_)
    flat = values.copy()
    for stage in flat:
        stage[others] = stage[others].mean()
    if isinstance(affinity, PairMeasurements):
        return replace(affinity, gain=flat)
    return replace(affinity, values=flat, samples=None, standard_errors=None)


def _chance(costs: Floats) -> float:
    """The gain of the best of all trees, (1 + replicates, trees), where replicates differ from the mean by chance."""
    if len(costs) < 3 or costs.shape[1] < 2:
        return float("nan")
    noise = costs[1:] - costs[:1]
    count = noise.shape[1]
    gains = (noise.sum(1, keepdims=True) - noise) / (count - 1) - noise
    return float(np.quantile(gains.max(1), 0.95))


def _error(replicates: Floats) -> float:
    return float(replicates.std(ddof=1)) if len(replicates) > 1 else float("nan")
