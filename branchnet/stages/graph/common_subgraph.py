"""What the dataflows of several networks have in common.

Two nodes are the same if they do the same thing (operator, or module of equal type, settings and parameter shapes) to
the same earlier values and give a result of the same shape and type. Names do not count. What is common is closed under
"what it was computed from", so it starts at the inputs; several networks may run it in different orders, with nodes
of their own in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from branchnet.stages.graph.dataflow import Dataflow, attribute
from branchnet.stages.graph.propagation import NodeFacts, TensorForm
from branchnet.stages.graph.settings import form, module_signature, qualified_name
from branchnet.stages.graph.shape_queries import add_shape_query, shape_query
from branchnet.stages.tracing.constants import content, is_state
from branchnet.stages.tracing.fx_tracer import PREPROCESSING


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
    """Find the largest common structure."""
    alignment = _align(flows)
    if not _share_queries(alignment):
        return alignment
    return _align([Dataflow(flow.trace, flow.propagation) for flow in flows])


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


def node_keys(flow: Dataflow) -> dict[fx.Node, int]:
    """A number per node that says what it computes; equal numbers in two networks mean the same computation.

    A value that was overwritten in place since it was made counts as a different value.
    """
    keys: dict[fx.Node, int] = {}
    seen: Counter[int] = Counter()
    writers = _Writers(flow)
    for node in flow.order:
        facts = flow.facts[node]
        key = hash((_signature(flow, node), _argument_keys(flow, node, keys, writers), _form_key(facts.form)))
        # Two equal computations in one network (siblings without parameters) are numbered, so that each has one key.
        seen[key] += 1
        keys[node] = hash((key, seen[key]))
        writers.note(node, keys[node])
    return keys


class _Writers:
    """What has been written to each memory block so far."""

    def __init__(self, flow: Dataflow) -> None:
        self._flow = flow
        self._last: dict[int, int] = {}
        self._when_made: dict[fx.Node, tuple[int, ...]] = {}

    def note(self, node: fx.Node, key: int) -> None:
        """The node has run."""
        facts = self._flow.facts[node]
        for block in facts.overwritten:
            self._last[block] = hash((self._last.get(block), key))
        self._when_made[node] = self.of(facts.storages)

    def of(self, blocks: frozenset[int]) -> tuple[int, ...]:
        """The last writers of the blocks."""
        return tuple(sorted(self._last[block] for block in blocks if block in self._last))

    def since(self, node: fx.Node) -> tuple[int, ...]:
        """The last writers of a node's value, none if nothing was written to it since it was made."""
        now = self.of(self._flow.facts[node].storages)
        return () if now == self._when_made.get(node) else now


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


def _argument_keys(flow: Dataflow, node: fx.Node, keys: dict[fx.Node, int], writers: _Writers) -> Any:
    def key(source: fx.Node) -> Any:
        value = _free_key(flow, source) if source in flow.free else keys[source]
        return (value, writers.since(source))

    return (_plain((node.args, node.kwargs), key), writers.of(flow.facts[node].state))


def _free_key(flow: Dataflow, node: fx.Node) -> Any:
    if node.op == "get_attr":
        value = attribute(flow.trace.root, str(node.target))
        constant = isinstance(value, Tensor) and not is_state(flow.trace.root, str(node.target))
        return ("constant", content(value) if constant else _held_form(value))
    return (str(node.target), _plain((node.args, node.kwargs), lambda source: _free_key(flow, source)))


def _held_form(value: Any) -> Any:
    return form(value) if isinstance(value, Tensor) else type(value).__name__


def _plain(value: Any, key: Any) -> Any:
    """Arguments as something hashable, with nodes replaced by their keys."""
    if isinstance(value, fx.Node):
        return key(value)
    if isinstance(value, tuple | list):
        return tuple(_plain(item, key) for item in value)
    if isinstance(value, dict):
        return tuple((name, _plain(item, key)) for name, item in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", _plain((value.start, value.stop, value.step), key))
    return repr(value)


def _signature(flow: Dataflow, node: fx.Node) -> Any:
    if node.op == "placeholder":
        return ("input", flow.inputs.index(node))
    if node.target == PREPROCESSING:
        return ("transform",)
    if node.op == "call_module":
        return ("module", module_signature(flow.trace.root.get_submodule(str(node.target))))
    target = node.target if isinstance(node.target, str) else qualified_name(node.target)
    return (node.op, target)


def _form_key(form: Any) -> Any:
    if isinstance(form, TensorForm):
        return (form.shape, str(form.dtype))
    if isinstance(form, tuple | list):
        return tuple(_form_key(item) for item in form)
    return repr(form) if isinstance(form, bool | int | float | str | torch.dtype | None) else type(form).__name__
