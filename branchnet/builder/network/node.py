"""One node of a branched network, and the one place where the ids of nodes and heads are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from branchnet.stages import Stage


def node_id(stage: int, index: int) -> str:
    """The id, and name as a module, of the node of cluster `index` of `stage`: `nodes.<stage>.<index>`."""
    return f"nodes.{stage}.{index}"


def head_id(index: int) -> str:
    """The id, and name as a module, of the head of task number `index`: `heads.<index>`."""
    return f"heads.{index}"


@dataclass(frozen=True)
class Node:
    """One node of a branched network, or the head of one task.

    Attributes:
        stage: number of the node's stage; for a head D, the number of stages, as the head comes after the last one.
        index: number of the node's cluster in `tree.partitions[stage]`; for a head the number of its task.
        tasks: the tasks that it serves.
        donor: the task whose single-task network gave the initial weights.
        module: the module itself.
        is_head: whether it is a head.
    """

    stage: int
    index: int
    tasks: tuple[str, ...]
    donor: str
    module: nn.Module
    is_head: bool = False

    @property
    def id(self) -> str:
        """The module's name: `nodes.<stage>.<index>` or `heads.<index>`."""
        return head_id(self.index) if self.is_head else node_id(self.stage, self.index)


def check_trainable(nodes: Iterable[nn.Module]) -> None:
    """Refuse the modules of nodes of which one can only be evaluated.

    Raises:
        SplitError: says which stage, and why it cannot be trained.
    """
    for node in nodes:
        for module in node.modules():
            if isinstance(module, Stage):
                module.check_trainable()
