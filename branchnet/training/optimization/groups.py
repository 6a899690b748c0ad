"""What of a branched network is trained: its tasks, and for each node a group of parameters with a rate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from torch import nn

from branchnet.builder import BranchedNetwork, Node
from branchnet.errors import TrainingError

WEIGHT_DECAY = 1e-4

Rate: TypeAlias = float | Callable[[Node], float]
"""One learning rate for all, or a function from a node or head (its id, tasks, donor, module) to its rate."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained with one learning rate, and drawn towards 0 by one weight decay.

    Where the rate of a run is found by trying, a group's own is multiplied by it, unless it is not `scaled`.
    """

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = WEIGHT_DECAY
    scaled: bool = True


def trained_tasks(branched: BranchedNetwork) -> tuple[str, ...]:
    """Return the tasks with something to train on their path: all but those that are frozen throughout.

    Args:
        branched: the network.

    Raises:
        TrainingError: everything is frozen.
    """
    found = {
        task
        for node in branched.members()
        if any(parameter.requires_grad for parameter in node.module.parameters())
        for task in node.tasks
    }
    if not found:
        raise TrainingError("every node of the network is frozen; expected one to train; call branched.unfreeze(...)")
    return tuple(task for task in branched.tasks if task in found)


def check_rate(rate: object, whose: str = "") -> None:
    """Refuse a learning rate that is not a finite number of 0 or more.

    Args:
        rate: what was given.
        whose: such as ` of nodes.0.0`.

    Raises:
        TrainingError: such a rate, with its value.
    """
    if not isinstance(rate, Real) or not math.isfinite(rate) or rate < 0:
        raise TrainingError(f"the learning rate{whose} is {rate!r}; expected a finite number of 0 or more")


def node_groups(branched: BranchedNetwork, learning_rate: Rate, *, divided: bool = False) -> list[Group]:
    """Group the trainable parameters by node, from input to heads; a parameter of several nodes is in the first.

    Args:
        branched: the network; what is frozen is in no group.
        learning_rate: one rate, or a function of the node: `lambda node: 1e-4 if len(node.tasks) > 1 else 1e-3`.
        divided: divide the rate of a node by the number of tasks that it serves.

    Returns:
        one group for each node and head; some may be empty.

    Raises:
        TrainingError: a rate that is negative or not finite; the node is named.
    """
    seen: set[int] = set()
    groups = []
    for node in branched.members():
        own = [p for p in node.module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(map(id, own))
        rate = learning_rate(node) if callable(learning_rate) else learning_rate
        check_rate(rate, f" of {node.id}")
        groups.append(Group(own, rate / (len(node.tasks) if divided else 1)))
    return groups
