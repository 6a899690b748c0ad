"""How sure a tree is: how often it, and each of its branch points, survives other data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.budgets.budget import AnyBudget
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit
from branchnet.clustering.constraints import Constraints
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.stitching.stitch_sizes import StitchSizes
from branchnet.clustering.tree_search import search
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError
from branchnet.utils.visible_text import visible


@dataclass(frozen=True)
class Stability:
    """How often a tree came out best again.

    Attributes:
        tree: the tree in question.
        replicates: number of replicates that were solved.
        same_tree: share of them with exactly this tree.
        nodes: for each stage the share of replicates in which each of the tree's clusters is a cluster again.
        together: (D, N, N), share of replicates in which each pair of tasks shares each stage.
        distances: for each replicate the number of stage-pairs in which its tree differs.

    >>> tree = branchnet.Tree.shared(["depth", "edges"], 1)
    >>> other = branchnet.Tree.separate(["depth", "edges"], 1)
    >>> found = branchnet.clustering.compare_trees(tree, [tree, tree, tree, other])
    >>> isinstance(found, branchnet.Stability), found.same_tree, found.together[0, 0, 1].item(), found.distances
    (True, 0.75, 0.75, (0, 0, 0, 1))
    """

    tree: Tree
    replicates: int
    same_tree: float
    nodes: tuple[tuple[float, ...], ...]
    together: npt.NDArray[np.float64]
    distances: tuple[int, ...]

    def __str__(self) -> str:
        lines = [f"the same tree in {100 * self.same_tree:.0f}% of {self.replicates} replicates"]
        for stage, (clusters, shares) in enumerate(zip(self.tree.partitions, self.nodes, strict=True)):
            nodes = "; ".join(
                f"{', '.join(map(visible, c))} ({100 * s:.0f}%)" for c, s in zip(clusters, shares, strict=True)
            )
            lines.append(f"stage {stage}: {nodes}")
        return "\n".join(lines)


def stability(
    result: SearchResult | Tree,
    replicates: Affinity | Iterable[Affinity],
    costs: CostsByUnit,
    budget: AnyBudget | None = None,
    *,
    head_costs: HeadCostsByUnit | None = None,
    objective: str | None = None,
    stage_weights: Sequence[float] | str | None = None,
    method: str = "auto",
    shared_stages: int = 0,
    constraints: Constraints | None = None,
    task_weights: Mapping[str, float] | None = None,
    stitch_sizes: StitchSizes | None = None,
    samples: int = 50,
    seed: int = 0,
) -> Stability:
    """Solve the same search on other affinities and count how often the tree and its nodes come back.

    Args:
        result: the result of `search`, or a tree.
        replicates: bootstrap replicates or other seeds of the affinity; or one affinity with standard errors, from
            which `samples` replicates are drawn with independent normal errors.
        costs: as given to `search`.
        budget: as given to `search`; None = the result's.
        head_costs: as given to `search`.
        objective: None = the result's; for a tree the default of `search`.
        stage_weights: as given to `search`.
        method: as given to `search`.
        shared_stages: as given to `search`.
        constraints: as given to `search`.
        task_weights: as given to `search`.
        stitch_sizes: as given to `search`.
        samples: number of replicates drawn from standard errors.
        seed: for drawing and searching.

    Returns:
        How often the tree, its nodes and its pairs came back.

    Raises:
        AffinityError: no replicates, one affinity without standard errors, or a tree without a budget.

    >>> values = np.array([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]]])
    >>> errors = np.full((1, 3, 3), 0.01)
    >>> affinity = branchnet.Affinity(["a", "b", "c"], ["only"], values, standard_errors=errors)
    >>> result = branchnet.search(affinity, [1.0], "70% params")
    >>> print(branchnet.stability(result, affinity, [1.0], samples=10))
    the same tree in 100% of 10 replicates
    stage 0: a, b (100%); c (100%)
    """
    tree = result if isinstance(result, Tree) else result.tree
    if isinstance(result, SearchResult):
        budget = result.budget if budget is None else budget
        objective = result.objective if objective is None else objective
    if budget is None:
        raise AffinityError("a tree alone does not say under which budget it was the best; expected budget=")
    drawn = drawn_replicates(replicates, samples, seed) if isinstance(replicates, Affinity) else replicates
    trees = [
        search(
            replicate,
            costs,
            budget,
            head_costs=head_costs,
            objective=objective or DEFAULT_OBJECTIVE,
            stage_weights=stage_weights,
            method=method,
            shared_stages=shared_stages,
            constraints=constraints,
            task_weights=task_weights,
            stitch_sizes=stitch_sizes,
            seed=seed,
        ).tree
        for replicate in drawn
    ]
    if not trees:
        raise AffinityError("replicates is empty; expected at least one affinity")
    return compare_trees(tree, trees)


def compare_trees(tree: Tree, others: list[Tree]) -> Stability:
    """Count how often other trees have a tree's nodes and pairs.

    Args:
        tree: the tree in question.
        others: trees of the same tasks and depth, at least one.

    Returns:
        The counts as shares.

    Raises:
        TreeError: other tasks or another depth.
    """
    labels = np.array([other.labels(tree.tasks) for other in others])
    together = (labels[:, :, :, None] == labels[:, :, None, :]).mean(axis=0)
    found = [[{frozenset(c) for c in other.partitions[d]} for other in others] for d in range(tree.depth)]
    nodes = tuple(
        tuple(sum(frozenset(cluster) in clusters for clusters in found[d]) / len(others) for cluster in stage)
        for d, stage in enumerate(tree.partitions)
    )
    same = sum(other == tree for other in others) / len(others)
    return Stability(tree, len(others), same, nodes, together, tuple(tree.distance(other) for other in others))


def drawn_replicates(affinity: Affinity, samples: int, seed: int) -> list[Affinity]:
    """Replicates with independent normal errors of the affinity's standard errors; symmetric if the affinity is."""
    errors = affinity.standard_errors
    if errors is None:
        raise AffinityError(
            "the affinity has no standard errors; expected some (bootstrap= when it is measured), or replicates"
        )
    generator = np.random.default_rng(seed)
    values = affinity.values
    symmetric = bool(np.allclose(values, values.transpose(0, 2, 1)))
    replicates = []
    for _ in range(samples):
        noise = generator.normal(size=values.shape) * errors
        if symmetric:
            upper = np.triu(noise, 1)
            noise = upper + upper.transpose(0, 2, 1)
        replicates.append(
            Affinity(
                affinity.tasks,
                affinity.locations,
                values + noise,
                measure=affinity.measure,
                directed=affinity.directed,
                depths=affinity.depths,
            )
        )
    return replicates
