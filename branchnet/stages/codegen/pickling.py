"""Graphs as pickle can keep them: plain rows, and functions of torch's own extension, which it refuses, by name."""

from __future__ import annotations

import builtins
import pkgutil
import sys
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate, map_arg

from branchnet.stages.codegen.in_place_ops import is_marked, mark
from branchnet.utils.installed_torch.torch_internals import OpOverload, OpOverloadPacket, qualified_name

_OF_EXTENSIONS = (BuiltinFunctionType, OpOverload, OpOverloadPacket)


@dataclass(frozen=True)
class Row:
    """A node of a graph; other nodes among its arguments by their places in the graph, functions perhaps by name."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    written_in_place: bool


@dataclass(frozen=True)
class _Place:
    index: int


@dataclass(frozen=True)
class _Function:
    name: str


def rows_of(graph: fx.Graph) -> list[Row]:
    """The nodes of a graph in order."""
    places: dict[fx.Node, Any] = {node: _Place(index) for index, node in enumerate(graph.nodes)}
    return [
        Row(
            node.op,
            node.name,
            _named(node.target),
            map_arg(node.args, places.__getitem__),
            map_arg(node.kwargs, places.__getitem__),
            is_marked(node),
        )
        for node in graph.nodes
    ]


def graph_of(rows: list[Row]) -> fx.Graph:
    """The graph of these nodes."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def node_at(value: Any) -> Any:
        return nodes[value.index] if isinstance(value, _Place) else value

    for row in rows:
        args, kwargs = map_aggregate(row.args, node_at), map_aggregate(row.kwargs, node_at)
        nodes.append(graph.create_node(row.op, _found(row.target), args, kwargs, row.name))
        if row.written_in_place:
            mark(nodes[-1])
    return graph


def _named(target: Any) -> Any:
    name, module = getattr(target, "__name__", ""), getattr(target, "__module__", None)
    if isinstance(target, FunctionType) and "<locals>" in target.__qualname__:  # such as max_pool2d
        return _Function(f"{module}.{name}") if getattr(sys.modules.get(str(module)), name, None) is target else target
    # pickle looks functions of C extensions up by a module name that they do not always have; builtins it does know.
    foreign = isinstance(target, _OF_EXTENSIONS) and not hasattr(builtins, name)
    return _Function(qualified_name(target)) if foreign else target


def _found(target: Any) -> Any:
    return pkgutil.resolve_name(target.name) if isinstance(target, _Function) else target
