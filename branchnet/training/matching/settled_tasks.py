"""Tasks that distillation has nothing to teach: their outputs are their own networks', and no other task needs theirs.

A task whose path holds nothing but its own network's weights begins with a loss of 0. Its gradients are rounding errors
then, which AdamW scales to steps as long as any other's: training it can only do harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx

from branchnet.builder import BranchedNetwork
from branchnet.stitching.output_distances import float_leaves

_EQUAL = 1e-5


def settled_tasks(branched: BranchedNetwork, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> frozenset[str]:
    """Find the tasks of which nothing need be trained.

    Args:
        branched: the network; tasks that share a node or a parameter are settled together or not at all.
        found: its outputs by task, in eval mode, on some samples; tasks that are not trained may be left out.
        wanted: those of the single-task networks.

    Returns:
        the tasks; none where all of those that are trained would be, for then it is not this that was asked for.
    """
    equal = {task for task in wanted if _equal(found[task], wanted[task])}
    settled = {task for tasks in _together(branched) if tasks & set(wanted) <= equal for task in tasks & set(wanted)}
    return frozenset(settled if settled != set(wanted) else ())


def _together(branched: BranchedNetwork) -> list[set[str]]:
    """The tasks in sets that share nothing with each other; parameters tell what paths of separate nodes share."""
    graph = nx.Graph()
    for node in branched.members():
        graph.add_edges_from((task, node.id) for task in node.tasks)
        graph.add_edges_from((node.id, id(parameter)) for parameter in node.module.parameters())
    return [part & set(branched.tasks) for part in nx.connected_components(graph)]


def _equal(output: Any, wanted: Any) -> bool:
    return all(
        bool((one - other).abs().max() <= _EQUAL * other.abs().max())
        for one, other in zip(float_leaves(output), float_leaves(wanted), strict=True)
        if one.numel()
    )
