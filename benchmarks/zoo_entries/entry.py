"""What every entry of the zoo gives: trained networks of one structure, inputs to fit on, and others to judge by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor, nn

Inputs: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""What a network is called with: one tensor, or several that are passed one by one; the first dimension counts."""


@dataclass(frozen=True)
class ZooEntry:
    """Really trained single-task networks of one structure.

    Attributes:
        name: the entry's name.
        networks: the networks by task, in evaluation mode; all take the same inputs.
        probe: inputs to compare and to fit on.
        held_out: inputs from other photos or texts, to judge by.
        kinds: for each task `"classification"` (logits, classes in dimension 1) or `"regression"`.
        labels: for some tasks what is right for each held-out input; None where no task has labels.
        source: where networks and inputs come from.
        license: of the networks.
        scores: for some tasks the name of a number that its users know, and what computes it from the outputs on all
            held-out inputs and what is right: the task's labels where it has any, else its own network's outputs.
        locations: where to cut, or how many places to find.
    """

    name: str
    networks: dict[str, nn.Module]
    probe: Inputs
    held_out: Inputs
    kinds: dict[str, Literal["classification", "regression"]]
    labels: dict[str, Tensor] | None
    source: str
    license: str
    scores: Mapping[str, tuple[str, Callable[[Tensor, Tensor], float]]] = field(default_factory=dict)
    locations: int | Sequence[str] = 5
