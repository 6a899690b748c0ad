"""How good a state of a network is by the losses of all its tasks, where no task shall pay for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

HARM = 2.0
"""A loss that is higher than before training counts this much more: 3 in all. Where some tasks work and others do not
yet, training them is worth a little harm; where all work, it is not."""


class KnownUnits(Protocol):
    """What is known of the losses of tasks."""

    @property
    def tolerance(self) -> Callable[[str, float], float]:
        """From a task and its loss before to how much more counts as equal."""

    @property
    def scale(self) -> Callable[[str, float], float]:
        """From a task and its loss before to the unit in which losses of tasks are added up."""


def weighed(losses: Mapping[str, float], before: Mapping[str, float], known: KnownUnits) -> float:
    """Add up the losses in their units, and the harm that tasks have taken twice more.

    Args:
        losses: by task, now.
        before: by task, before training.
        known: units and tolerances.

    Returns:
        the smaller the better.
    """
    total = 0.0
    for task, loss in losses.items():
        harm = max(0.0, loss - before[task] - known.tolerance(task, before[task]))
        total += (loss + HARM * harm) / known.scale(task, before[task])
    return total
