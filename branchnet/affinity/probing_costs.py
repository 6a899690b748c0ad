"""What it costs to probe gradients: passes through trunk and heads for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["lookahead", "first-order", "cosine"]


@dataclass(frozen=True)
class ProbingCost:
    """What one probed batch costs, on top of its ordinary forward pass.

    Attributes:
        backwards: backward passes through heads and trunk.
        trunk_forwards: forward passes through the trunk; a pass through its last stages counts as their share of D.
        head_forwards: forward passes through single heads, those of the ordinary pass included.
    """

    backwards: int
    trunk_forwards: float
    head_forwards: int

    def __str__(self) -> str:
        return (
            f"{self.backwards} backward passes, {self.trunk_forwards:g} trunk forwards and {self.head_forwards} head "
            "forwards per batch"
        )


def probing_cost(
    tasks: int, stages: int, *, method: Method = "lookahead", per_stage: bool = True, control: bool = False
) -> ProbingCost:
    """What `gradient_affinity` will cost per batch for a trunk that all tasks share; a branched one costs less.

    With N tasks and D stages: N backward passes; the whole-trunk look-ahead N trunk forwards and N * N + N head
    forwards; per stage D * N forwards through the rest of the trunk and D * N * N + N head forwards; the control one
    more step; first-order and cosine nothing beyond the N backward passes.

    Args:
        tasks: N.
        stages: D.
        method: as `gradient_affinity` takes it.
        per_stage: as `gradient_affinity` takes it.
        control: whether the control is measured too, as it is with an optimizer.

    Returns:
        Numbers of passes; `str()` of it is a sentence.
    """
    steps = tasks + int(control)  # one control serves all tasks: a step without gradients is the same for each of them
    if method != "lookahead":
        return ProbingCost(tasks, 0, tasks)
    if not per_stage:
        return ProbingCost(tasks, steps, steps * tasks + tasks)
    # From stage d on, (D - d) / D of the trunk is run: summed over d, (D + 1) / 2 trunks.
    return ProbingCost(tasks, steps * (stages + 1) / 2, stages * steps * tasks + tasks)
