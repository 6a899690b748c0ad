"""One task's path through a branched network, as a network of that task alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class TaskPath(nn.Module):
    """The nodes and the head that compute one task, called like that task's own network; they are not copied.

    Args:
        nodes: the task's node of each stage, from input to output.
        head: the task's head.
        locations: the names of the ends of the stages.

    Attributes:
        stages: the nodes, from input to output.
        head: the task's head.
        locations: the names of the ends of the stages.
    """

    def __init__(self, nodes: Sequence[nn.Module], head: nn.Module, locations: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nodes)
        self.head = head
        self.locations = tuple(locations)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the task's output.

        Args:
            args, kwargs: what the task's single-task network takes.

        Returns:
            what that network returns.
        """
        cut = self.stages[0](*args, **kwargs)
        for node in self.stages[1:]:
            cut = node(*cut)
        return self.head(*cut)
