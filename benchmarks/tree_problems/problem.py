"""What every problem gives: samples, how they are learned, and networks to begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from branchnet.training import Metric

Rows = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class TreeProblem:
    """Four tasks on the same inputs.

    Attributes:
        train: inputs and labels by task.
        test: of other people, months or pictures.
        losses: by task.
        metrics: by task.
        factories: by task what makes an untrained network.
        locations: the ends of its three stages.
        steps: updates of the weights in each training.
        batch_size: samples a batch.
        learning_rate: peak rate of AdamW.
        sampled: how many trees are trained where not all are; None for all.
        repeated: how many of these are trained under further seeds than the first; None for all.
    """

    train: Rows
    test: Rows
    losses: Mapping[str, Callable[[Any, Any], Tensor]]
    metrics: Mapping[str, Metric]
    factories: Mapping[str, Callable[[], nn.Module]]
    locations: Sequence[str]
    steps: int
    batch_size: int
    learning_rate: float
    sampled: int | None = None
    repeated: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(self.factories)
