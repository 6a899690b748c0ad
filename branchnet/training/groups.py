"""One group of parameters for each node, so that a node's learning rate can depend on the tasks that it serves."""

from __future__ import annotations

from branchnet.builder import BranchedNetwork
from branchnet.training.loop import Group


def node_groups(branched: BranchedNetwork, learning_rate: float, *, divided: bool = False) -> list[Group]:
    """Group the trainable parameters by node, from input to heads; a parameter of several nodes is in the first.

    With `divided`, the rate of a node is divided by the number of tasks that it serves.
    """
    seen: set[int] = set()
    groups = []
    for node in branched.members():
        own = [p for p in node.module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(map(id, own))
        groups.append(Group(own, learning_rate / (len(node.tasks) if divided else 1)))
    return groups
