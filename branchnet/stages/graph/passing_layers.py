"""Give all networks the layers that return their argument (identities, dropout) where one of them has one.

Such a layer in one network's graph has no counterpart in another's. `torch.positive`, which returns its argument
itself, becomes that counterpart, so that the graphs agree node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.node_keys import node_keys
from branchnet.stages.graph.operations import passes


def even_out(flows: Sequence[Dataflow]) -> bool:
    """Insert what is missing, after the same values in all networks.

    Args:
        flows: one dataflow per network; their graphs may change, and are to be read again then.

    Returns:
        Whether any graph has changed.
    """
    changed = [_identities_first(flow) for flow in flows]
    ends = [_chains(Dataflow(flow.trace, flow.propagation)) for flow in flows]
    for key in ends[0]:
        chains = [found[key] for found in ends if key in found]
        if len(chains) < len(flows):
            continue
        length = max(len(chain.layers) for chain in chains)
        read_before = frozenset[int]().union(*(chain.read_before() for chain in chains if chain.layers))
        for flow, chain in zip(flows, chains, strict=True):
            for _ in range(length - len(chain.layers)):
                _append(flow, chain, read_before)
                changed.append(True)
    return any(changed)


@dataclass(frozen=True)
class _Chain:
    """A value, and the layers behind it that return it.

    Attributes:
        value: the node that makes the value.
        layers: the layers, each reading the one before.
        keys: what every node of the network computes, seen through such layers.
    """

    value: fx.Node
    layers: list[fx.Node]
    keys: dict[fx.Node, int]

    def read_before(self) -> frozenset[int]:
        """What reads the value itself, past the layers."""
        users = (user for user in self.value.users if user not in self.layers)
        return frozenset(self.keys[user] for user in users if user in self.keys)


def _chains(flow: Dataflow) -> dict[int, _Chain]:
    """For every value its chain, by what the value is."""
    keys = node_keys(flow, see_through=True)
    found = {}
    for node in flow.order:
        if not passes(flow, node):
            layers: list[fx.Node] = []
            while (after := next((u for u in (layers or [node])[-1].users if passes(flow, u)), None)) is not None:
                layers.append(after)
            found[keys[node]] = _Chain(node, layers, keys)
    return found


def _append(flow: Dataflow, chain: _Chain, read_before: frozenset[int]) -> None:
    """One more layer at the end of a chain; what reads the value itself in other networks goes on reading it."""
    last = chain.layers[-1] if chain.layers else chain.value
    users = list(last.users)
    with flow.trace.graph.inserting_after(_anchor(flow, last)):
        layer = flow.trace.graph.call_function(torch.positive, (last,))
    layer.meta = dict(last.meta)
    facts = flow.facts[last]
    flow.propagation.facts[layer] = replace(
        facts, flops=0, activation_bytes=0, overwritten=frozenset(), uncounted=frozenset(), state=frozenset()
    )
    for user in users:
        if chain.keys.get(user) not in read_before:
            user.replace_input_with(last, layer)
    chain.layers.append(layer)


def _identities_first(flow: Dataflow) -> bool:
    """Let whatever reads the argument of an identity read its result, which is the same: whether anything did."""
    changed = False
    for node in flow.order:
        source = node.args[0] if node.op == "call_module" and passes(flow, node) else None
        if not isinstance(source, fx.Node) or list(source.users) == [node]:
            continue
        if type(flow.trace.root.get_submodule(str(node.target))) is nn.Identity:
            _anchor(flow, source).append(node)
            source.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user is not node)  # type: ignore[misc]
            changed = True
    return changed


def _anchor(flow: Dataflow, node: fx.Node) -> fx.Node:
    """The node after which something that reads `node` can stand: inputs come first, all of them."""
    return flow.inputs[-1] if node.op == "placeholder" else node
