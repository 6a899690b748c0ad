"""Ask for shapes and types as soon as a tensor exists, so that only the answer has to travel to where it is used."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

_METHODS = frozenset({"size", "dim", "ndimension", "numel", "get_device", "is_floating_point"})
_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda"})


def settle_queries(graph: fx.Graph) -> None:
    """Move every question about a tensor's shape, type or device right behind the tensor; merge those about shape."""
    for node in list(graph.nodes):
        for user in list(node.users):
            if _asks(user, node):
                _behind(node, user)
        _merge_shapes(graph, node)


def shape_query(node: fx.Node) -> fx.Node | None:
    """The node that holds the shape of a tensor, if there is one."""
    return next((user for user in node.users if _asks_shape(user, node)), None)


def add_shape_query(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Ask for a tensor's shape right behind it."""
    with graph.inserting_after(_last_of_placeholders(node)):
        return graph.call_function(getattr, (node, "shape"))


def _merge_shapes(graph: fx.Graph, node: fx.Node) -> None:
    asking = [user for user in node.users if _asks_shape(user, node) or _asks_length(user, node)]
    if not asking:
        return
    shape = add_shape_query(graph, node)
    for user in asking:
        if _asks_length(user, node):
            user.target, user.op = operator.getitem, "call_function"
            user.args, user.kwargs = (shape, _dimension(user)), {}
        else:
            user.replace_all_uses_with(shape)
            graph.erase_node(user)
    for user in reversed(list(shape.users)):
        if user.op == "call_function" and user.target is operator.getitem:
            _behind(shape, user)


def _asks(user: fx.Node, node: fx.Node) -> bool:
    if user.args[:1] != (node,) or len(user.all_input_nodes) != 1:
        return False
    if user.op == "call_method":
        return user.target in _METHODS
    return user.op == "call_function" and user.target is getattr and user.args[1] in _ATTRIBUTES


def _asks_shape(user: fx.Node, node: fx.Node) -> bool:
    if not _asks(user, node):
        return False
    if user.op == "call_method":
        return user.target == "size" and len(user.args) == 1 and not user.kwargs
    return user.args[1] == "shape"


def _asks_length(user: fx.Node, node: fx.Node) -> bool:
    return _asks(user, node) and user.target == "size" and not _asks_shape(user, node)


def _dimension(user: fx.Node) -> Any:
    return user.args[1] if len(user.args) > 1 else user.kwargs["dim"]


def _behind(node: fx.Node, user: fx.Node) -> None:
    # Its module calls are forgotten, too: the question now belongs to no call, so it does not prolong one.
    _last_of_placeholders(node).append(user)
    user.meta = {}


def _last_of_placeholders(node: fx.Node) -> fx.Node:
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
