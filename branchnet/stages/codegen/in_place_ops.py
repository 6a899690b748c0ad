"""Write `x += y` where the network's own code does: torch.fx records `x + y`, which needs memory of its own.

The graph keeps the sum as a new value, so that every analysis may take each value for what it was when it was made.
Only the code of a subgraph overwrites x, and only where nothing reads x afterwards.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from branchnet.stages.graph.dataflow import Dataflow

_MARK = "written in place"
_IN_PLACE: Mapping[Any, Callable[..., Any]] = {
    operator.add: operator.iadd,
    operator.sub: operator.isub,
    operator.mul: operator.imul,
}
_FORM_FROM_OTHER = frozenset({"to", "type_as", "view_as", "reshape_as", "expand_as"})
"""Methods that take from their argument no more than its shape or type."""


class InPlaceProxy(fx.Proxy):
    """A traced value that remembers of a sum, difference or product that it was written in place."""

    def __iadd__(self, other: Any) -> Any:
        return _marked(self + other)

    def __isub__(self, other: Any) -> Any:
        return _marked(self - other)

    def __imul__(self, other: Any) -> Any:
        return _marked(self * other)


def _marked(result: Any) -> Any:
    mark(result.node)
    return result


def mark(node: fx.Node) -> None:
    """Remember that a sum, difference or product is written in place."""
    node.meta[_MARK] = True


def is_marked(node: fx.Node) -> bool:
    """Whether a node is written in place."""
    return bool(node.meta.get(_MARK))


def reusable(
    flow: Dataflow, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> frozenset[fx.Node]:
    """Those nodes of a subgraph that may overwrite their first operand, as the network's own code does.

    Nothing but them needs the operand's memory from then on; it is not the subgraph's input; and the operand depends on
    the subgraph's parameters: `torch.func.vmap` over nodes that share their input can overwrite no other value.
    """
    last = {source: k for k, node in enumerate(nodes) for source in node.all_input_nodes}
    last |= dict.fromkeys(outputs, len(nodes))
    kept = frozenset[int]().union(*(flow.facts[node].storages for node in (*inputs, *flow.free)))

    def may_overwrite(position: int, node: fx.Node) -> bool:
        operand, other = node.args
        if not isinstance(operand, fx.Node) or flow.facts[operand].form != flow.facts[node].form:
            return False
        block = flow.facts[operand].storages
        if not block or block & kept or (isinstance(other, fx.Node) and flow.facts[other].storages & block):
            return False
        if any(flow.facts[each].storages & block and last.get(each, -1) > position for each in nodes):
            return False
        return bool(flow.parameters(_made_from(flow, operand, inputs)))

    return frozenset(node for k, node in enumerate(nodes) if is_marked(node) and may_overwrite(k, node))


def mark_only(copies: Mapping[fx.Node, fx.Node], in_place: frozenset[fx.Node]) -> None:
    """Leave the mark on the copies of these nodes alone."""
    for node, copied in copies.items():
        copied.meta = {_MARK: True} if node in in_place else {}


def written_in_place(graph: fx.Graph) -> fx.Graph:
    """The graph to make code from: with the in-place forms of the marked operators."""
    written = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = written.node_copy(node, copies.__getitem__)
        if is_marked(node):
            copies[node].target = _IN_PLACE[node.target]
    return written


def _made_from(flow: Dataflow, node: fx.Node, inputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes whose values the node's depends on: what gives it no more than a shape or a type is none of them."""
    pending, found = [node], {node}
    while pending:
        made = pending.pop()
        sources = made.all_input_nodes[:1] if made.target in _FORM_FROM_OTHER else made.all_input_nodes
        for source in sources:
            carries = source.op == "get_attr" or bool(flow.facts[source].tensors)
            if carries and source not in found and source not in inputs:
                found.add(source)
                pending.append(source)
    return [made for made in found if made.target not in _FORM_FROM_OTHER]
