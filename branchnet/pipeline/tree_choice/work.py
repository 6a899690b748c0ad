"""How many proposed trees are measured: as many as take about as long as the affinities did, by multiply-adds.

Counted and not timed, so that the same run measures the same trees everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from branchnet.clustering import Tree
from branchnet.stages import StagedNetwork
from branchnet.stitching.closed_form import METHODS
from branchnet.stitching.probe_division import LEAST_FITTED, MOST_JUDGED

FITTED = 160
"""Inputs of the probe that the stitches of a tree that is only tried are fitted and chosen on."""
FEWEST_TREES, MOST_TREES = 9, 36


@dataclass(frozen=True)
class Work:
    """Multiply-adds of what is run on each input.

    Attributes:
        stages: of one copy of every stage.
        heads: of every task's head.
        probe: K, inputs that the networks are compared on.
        held_out: inputs that trees are measured on.
    """

    stages: tuple[float, ...]
    heads: Mapping[str, float]
    probe: int
    held_out: int

    @property
    def separate(self) -> float:
        """All networks on one input."""
        return len(self.heads) * math.fsum(self.stages) + math.fsum(self.heads.values())

    @property
    def affinities(self) -> float:
        """What RSA and the stitching losses take."""
        pairs = len(self.heads) * (len(self.heads) - 1)
        rests = pairs * math.fsum(map(self._rest, range(len(self.stages))))
        return (self.probe + LEAST_FITTED + MOST_JUDGED) * self.separate + 1.5 * MOST_JUDGED * rests

    def of(self, tree: Tree) -> float:
        """What it takes to measure a tree: nodes that run on other donors' features, and the choice of each stitch.

        The donors' own features are there already, for all trees.
        """
        fitted = min(FITTED, self.probe)
        widths = [*tree.widths, len(tree.tasks)]
        foreign = math.fsum((width - widths[0]) * cost for width, cost in zip(widths, self.stages, strict=False))
        heads = math.fsum(self.heads.values())
        choices = math.fsum((after - before) * self._rest(d) for d, (before, after) in enumerate(pairwise(widths)))
        return (fitted + self.held_out) * foreign + self.held_out * heads + len(METHODS) * fitted / 4 * choices

    def _rest(self, location: int) -> float:
        """What follows a location in one network, the mean over the heads."""
        return math.fsum(self.stages[location + 1 :]) + math.fsum(self.heads.values()) / len(self.heads)


def work_of(staged: Mapping[str, StagedNetwork], probe: int, held_out: int) -> Work:
    """The work of a run.

    Args:
        staged: the single-task networks.
        probe: K, inputs that they are compared on.
        held_out: inputs that trees are measured on.

    Returns:
        what its parts take.
    """
    first = next(iter(staged.values()))
    heads = {task: float(network.head_cost.flops) for task, network in staged.items()}
    return Work(tuple(float(cost.flops) for cost in first.costs), heads, probe, held_out)
