"""What a run of training minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        losses: from a batch to each task's loss, the mean over its labels; tasks without any are left out.
        weights: from a batch to how many labels each task's mean is over; None where batches count the same.
        tasks: the tasks.
    """

    losses: Callable[[Any], Mapping[str, Tensor]]
    weights: Callable[[Any], Mapping[str, float]] | None = None
    tasks: Sequence[str] = ()
