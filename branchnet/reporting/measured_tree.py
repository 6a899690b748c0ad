"""Trees that were proposed, built with stitching layers and measured before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from branchnet.clustering.trees.tree import Tree


@dataclass(frozen=True)
class MeasuredTree:
    """A proposed tree, and what it does without training.

    Attributes:
        tree: the tree.
        by: who proposed it, e.g. `RSA (mean-pair)`.
        size: in the budget's unit, stitches and heads included.
        predicted: the weighted mean over tasks of stitching losses at the last change of donor; None where not known.
        losses: for each task the distance of its outputs from its own network's: 0 as that network, 1 as a constant.
        weights: how much each task's loss counts in means, as in `Affinity.task_weights`; None = all the same.

    >>> shared = branchnet.Tree.shared(["depth", "edges"], 1)
    >>> tried = branchnet.reporting.MeasuredTree(shared, "RSA (mean-pair)", 1000.0, 0.25, {"depth": 0.0, "edges": 0.5})
    >>> tried.mean
    0.25
    """

    tree: Tree
    by: str
    size: float
    predicted: float | None
    losses: Mapping[str, float]
    weights: Mapping[str, float] | None = None

    @property
    def mean(self) -> float:
        """The weighted mean over tasks of the losses, by which trees are chosen."""
        weights = self.weights or dict.fromkeys(self.losses, 1.0)
        return sum(weights[task] * loss for task, loss in self.losses.items()) / sum(weights.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values.

        Returns:
            the tree by its tasks, partitions and depths, and the other attributes.
        """
        return {
            "tasks": list(self.tree.tasks),
            "tree": [list(map(list, stage)) for stage in self.tree.partitions],
            "depths": dict(self.tree.depths),
            "by": self.by,
            "size": self.size,
            "predicted": self.predicted,
            "losses": dict(self.losses),
            "weights": None if self.weights is None else dict(self.weights),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> MeasuredTree:
        """Read what `to_dict` gave.

        Args:
            stored: its result.

        Returns:
            an equal object.
        """
        tree = Tree(stored["tasks"], stored["tree"], stored.get("depths"))
        losses = {task: stored["losses"][task] for task in tree.tasks}
        weights = stored.get("weights")
        return cls(tree, stored["by"], stored["size"], stored["predicted"], losses, weights)
