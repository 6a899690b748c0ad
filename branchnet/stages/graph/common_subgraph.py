"""What the dataflows of several networks have in common.

Two nodes are the same if they do the same thing (operator, or module of equal type, settings and parameter shapes) to
the same earlier values and give a result of the same shape and type. Names and ways of writing do not count. What is
common is closed under "what it was computed from", so it starts at the inputs; several networks may run it in different
orders, with nodes of their own in between. Some networks may leave it before others, which have more in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.node_keys import node_keys
from branchnet.stages.graph.passing_layers import even_out
from branchnet.stages.graph.position_means import even_out_means
from branchnet.stages.graph.propagation import NodeFacts
from branchnet.stages.graph.shape_queries import add_shape_query, shape_query

Groups = Sequence[tuple[int, ...]]
"""The networks that share a first stretch of the trunk (all of them), then those that share a further one, and on."""


@dataclass(frozen=True)
class Alignment:
    """Nodes that networks have in common, in an order in which all of them can run theirs.

    Attributes:
        flows: one dataflow per network.
        common: for each common node its counterpart in every network; None in networks that have left the trunk before.
    """

    flows: tuple[Dataflow, ...]
    common: tuple[tuple[fx.Node | None, ...], ...]

    def order(self, network: int) -> tuple[fx.Node, ...]:
        """The common nodes of one network, in the common order."""
        return tuple(node for nodes in self.common if (node := nodes[network]) is not None)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many of the common nodes, from the first on, each network has."""
        return tuple(len(self.order(network)) for network in range(len(self.flows)))

    def passing(self, position: int) -> tuple[int, ...]:
        """The networks that have the common node of a position."""
        return tuple(network for network, length in enumerate(self.lengths) if position < length)

    @property
    def reference(self) -> int:
        """The first network that has all common nodes; what they are called and cost is read there."""
        return self.lengths.index(len(self.common))


def align(flows: Sequence[Dataflow], groups: Groups | None = None) -> Alignment:
    """Find the largest common structure; the graphs get operations that change nothing, where others have them.

    Args:
        flows: one dataflow per network.
        groups: who shares how far, each a subset of the one before, the first all networks; None = all or nothing.

    Returns:
        What all networks have in common, then what further groups do.
    """
    groups = groups or (tuple(range(len(flows))),)
    for members in groups:
        for change in (even_out_means, even_out) if len(members) > 1 else ():
            if change([flows[network] for network in members]):
                flows = _again(flows)
    alignment = _align(flows, groups)
    return _align(_again(flows), groups) if _share_queries(alignment) else alignment


def _again(flows: Sequence[Dataflow]) -> list[Dataflow]:
    """The dataflows of graphs that have changed."""
    return [Dataflow(flow.trace, flow.propagation) for flow in flows]


def _share_queries(alignment: Alignment) -> bool:
    """Let every network ask for the shape of a common value for which one of them asks: whether any query was added.

    A head that needs only the shape of an early tensor then does not keep that tensor alive.
    """
    added = False
    for nodes in alignment.common:
        present = [(node, flow) for node, flow in zip(nodes, alignment.flows, strict=True) if node is not None]
        if not any(shape_query(node) for node, _ in present):
            continue
        for node, flow in present:
            if shape_query(node) is None:
                query = add_shape_query(flow.trace.graph, node)
                flow.propagation.facts[query] = NodeFacts(torch.Size(flow.facts[node].form.shape))
                added = True
    return added


def _align(flows: Sequence[Dataflow], groups: Groups) -> Alignment:
    if len(flows) == 1:
        return Alignment(tuple(flows), tuple((node,) for node in flows[0].order))
    keys = [node_keys(flow) for flow in flows]
    inverse = [{key: node for node, key in found.items()} for found in keys]
    common: list[tuple[fx.Node | None, ...]] = []
    done: set[int] = set()
    for members in groups:
        shared = set.intersection(*(set(keys[network].values()) for network in members))
        for network in members:
            shared -= _overwrites_too_early(flows[network], keys[network], shared)
        first = keys[members[0]]
        for node in flows[members[0]].order:
            key = first[node]
            if key in shared and key not in done:
                common.append(tuple(found[key] if k in members else None for k, found in enumerate(inverse)))
        done |= shared
    return Alignment(tuple(flows), tuple(common))


def _overwrites_too_early(flow: Dataflow, keys: dict[fx.Node, int], shared: set[int]) -> set[int]:
    """Common nodes that may not run before the rest of this network, with all that depends on them.

    They overwrite a value that a node outside the common structure reads before.
    """
    read_outside: set[int] = set()
    removed: set[fx.Node] = set()
    blocked: set[int] = set()
    for node in flow.order:
        if keys[node] not in shared:
            read_outside |= {block for source in node.all_input_nodes for block in flow.facts[source].storages}
        elif (
            flow.facts[node].overwritten & (read_outside | blocked)
            or any(source in removed for source in node.all_input_nodes)
            or any(flow.facts[source].storages & blocked for source in node.all_input_nodes)
        ):
            removed.add(node)
            blocked |= flow.facts[node].overwritten
    return {keys[node] for node in removed}
