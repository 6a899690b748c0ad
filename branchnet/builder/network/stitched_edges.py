"""What surgery does with stitches: it takes out those that fit no more, and looks at paths as if there were none."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from branchnet.builder.network.task_path import TaskPath
from branchnet.stitching.stitch import StitchedStage, unstitched

if TYPE_CHECKING:
    from branchnet.builder.network.branched_network import BranchedNetwork
    from branchnet.builder.network.node import Node


def without_stitches_behind(branched: BranchedNetwork, nodes: Sequence[Node], arriving: str) -> BranchedNetwork:
    """Take out stitches behind some nodes, because another donor's features will arrive there.

    Args:
        branched: the network; it is not changed.
        nodes: nodes of it.
        arriving: the donor of those features; a stitch that maps them stays.

    Returns:
        a network that holds the same modules.
    """
    ids = {node.id for node in nodes}
    changed = copy.copy(branched)
    changed._modules = dict(branched._modules)
    changed.nodes = nn.ModuleList(nn.ModuleList(row) for row in branched.nodes)  # type: ignore[arg-type]
    changed.heads = nn.ModuleList(branched.heads)
    for child in branched.members():
        fed = branched.parent_of(child) in ids
        if fed and isinstance(child.module, StitchedStage) and child.module.stitch.source != arriving:
            changed.replace(child, child.module.stage)
    return changed


def plain_path(branched: BranchedNetwork, task: str) -> TaskPath:
    """Return the path of a task without its stitches, as networks whose structure is compared with it have none.

    Args:
        branched: the network.
        task: the task.

    Returns:
        the nodes and the head; they are not copied.
    """
    path = branched.path(task)
    return TaskPath([unstitched(node) for node in path.stages], unstitched(path.head), path.locations)
