"""What the dataflows of several networks have in common.

Two nodes are the same if they do the same thing (operator, or module of equal type, settings and parameter shapes) to
the same earlier values and give a result of the same shape and type. Names and ways of writing do not count. What is
common is closed under "what it was computed from", so it starts at the inputs; several networks may run it in different
orders, with nodes of their own in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.node_keys import node_keys
from branchnet.stages.graph.passing_layers import even_out
from branchnet.stages.graph.position_means import even_out_means
from branchnet.stages.graph.propagation import NodeFacts
from branchnet.stages.graph.shape_queries import add_shape_query, shape_query


@dataclass(frozen=True)
class Alignment:
    """Nodes that all networks have in common, in the order in which the first network runs them.

    Attributes:
        flows: one dataflow per network.
        common: for each common node its counterpart in every network.
    """

    flows: tuple[Dataflow, ...]
    common: tuple[tuple[fx.Node, ...], ...]

    def order(self, network: int) -> tuple[fx.Node, ...]:
        """The common nodes of one network, in the common order."""
        return tuple(nodes[network] for nodes in self.common)


def align(flows: Sequence[Dataflow]) -> Alignment:
    """Find the largest common structure; the graphs get operations that change nothing, where others have them."""
    for change in (even_out_means, even_out) if len(flows) > 1 else ():
        if change(flows):
            flows = _again(flows)
    alignment = _align(flows)
    return _align(_again(flows)) if _share_queries(alignment) else alignment


def _again(flows: Sequence[Dataflow]) -> list[Dataflow]:
    """The dataflows of graphs that have changed."""
    return [Dataflow(flow.trace, flow.propagation) for flow in flows]


def _share_queries(alignment: Alignment) -> bool:
    """Let every network ask for the shape of a common value for which one of them asks: whether any query was added.

    A head that needs only the shape of an early tensor then does not keep that tensor alive.
    """
    added = False
    for nodes in alignment.common:
        if not any(map(shape_query, nodes)):
            continue
        for node, flow in zip(nodes, alignment.flows, strict=True):
            if shape_query(node) is None:
                query = add_shape_query(flow.trace.graph, node)
                flow.propagation.facts[query] = NodeFacts(torch.Size(flow.facts[node].form.shape))
                added = True
    return added


def _align(flows: Sequence[Dataflow]) -> Alignment:
    if len(flows) == 1:
        return Alignment(tuple(flows), tuple((node,) for node in flows[0].order))
    keys = [node_keys(flow) for flow in flows]
    shared = set.intersection(*(set(found.values()) for found in keys))
    for flow, found in zip(flows, keys, strict=True):
        shared -= _overwrites_too_early(flow, found, shared)
    inverse = [{key: node for node, key in found.items()} for found in keys]
    common = tuple(
        tuple(nodes[keys[0][node]] for nodes in inverse) for node in flows[0].order if keys[0][node] in shared
    )
    return Alignment(tuple(flows), common)


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
