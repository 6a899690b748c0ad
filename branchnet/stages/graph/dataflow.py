"""The order in which a traced network computes, what is alive at each point, and subgraphs of it.

A *position* p is the point after the p-th node of the order. The values *alive* at p were made at or before p and are
used after it: everything after p depends on everything before only through them. *Free* nodes (parameters, buffers,
constants and what is computed from constants alone) belong to no position: every subgraph takes those that it uses.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchnet.stages.codegen.in_place_ops import mark_only, reusable
from branchnet.stages.graph.propagation import NodeFacts, Propagation, TensorForm
from branchnet.stages.tracing.fx_tracer import Trace, module_calls
from branchnet.utils.installed_torch.torch_internals import OpOverload, tree_leaves


@dataclass(frozen=True)
class Dataflow:
    """One mode of a traced network, with what each node did when it was run on the example."""

    trace: Trace
    propagation: Propagation

    @property
    def facts(self) -> Mapping[fx.Node, NodeFacts]:
        """What each node did."""
        return self.propagation.facts

    @cached_property
    def output(self) -> fx.Node:
        """The node that returns the network's result."""
        return self.trace.graph.output_node()

    @cached_property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The placeholders, in the order of the example's tensors."""
        return tuple(node for node in self.trace.graph.nodes if node.op == "placeholder")

    @cached_property
    def free(self) -> frozenset[fx.Node]:
        """Nodes that every subgraph may compute for itself."""
        free: set[fx.Node] = set()
        for node in self.trace.graph.nodes:
            if node.op == "get_attr" or (self._from_constants(node, free)):
                free.add(node)
        return frozenset(free)

    @cached_property
    def order(self) -> tuple[fx.Node, ...]:
        """The nodes that are not free, as the network runs them; what unpacks a tuple stands right behind it."""
        nodes = [node for node in self.trace.graph.nodes if node not in self.free and node.op != "output"]
        # Otherwise a cut could fall between a call and the `getitem` on its result, and would have to carry a tuple.
        unpacking = {node for node in nodes if _unpacks(node)}
        ordered: list[fx.Node] = []
        for node in nodes:
            if node not in unpacking:
                ordered += _with_unpacking(node, unpacking)
        return tuple(ordered)

    def calls(self, node: fx.Node) -> tuple[str, ...]:
        """The module calls that the node lies in, outermost first; what unpacks a result belongs to its maker."""
        while _unpacks(node) and isinstance(node.args[0], fx.Node) and node.args[0] not in self.free:
            node = node.args[0]
        return module_calls(node)

    def parameters(self, nodes: Iterable[fx.Node]) -> dict[int, nn.Parameter]:
        """The parameters that the nodes use, by identity."""
        found: dict[int, nn.Parameter] = {}
        for node in nodes:
            for used in (node, *self._free_inputs(node)):
                if used.op == "call_module":
                    found |= {id(p): p for p in self.trace.root.get_submodule(str(used.target)).parameters()}
                elif used.op == "get_attr":
                    value = attribute(self.trace.root, str(used.target))
                    found |= {id(p): p for p in _parameters_of(value)}
        return found

    def _free_inputs(self, node: fx.Node) -> set[fx.Node]:
        pending, found = [node], set()
        while pending:
            for source in pending.pop().all_input_nodes:
                if source in self.free and source not in found:
                    found.add(source)
                    pending.append(source)
        return found

    def _from_constants(self, node: fx.Node, free: set[fx.Node]) -> bool:
        if node.op not in {"call_function", "call_method"} or not node.all_input_nodes or not node.users:
            return False
        if not all(source in free for source in node.all_input_nodes) or self._random(node):
            return False
        uses_parameters = any(
            _parameters_of(attribute(self.trace.root, str(source.target)))
            for source in node.all_input_nodes
            if source.op == "get_attr"
        )
        if uses_parameters or self.facts[node].overwritten:
            return False
        # Where a buffer is written to, it counts when it is read.
        return not any(self.facts[each].storages & self.overwritten for each in (node, *node.all_input_nodes))

    @cached_property
    def overwritten(self) -> frozenset[int]:
        """The memory blocks that some node writes to."""
        return overwritten_in(self, self.facts)

    def _random(self, node: fx.Node) -> bool:
        target = node.target
        if isinstance(target, OpOverload):
            return torch.Tag.nondeterministic_seeded in target.tags
        # Functions and methods carry no tag as operators do. A name too many costs nothing: the node is then not free.
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        return any(word in name for word in ("rand", "dropout", "bernoulli", "normal", "uniform", "multinomial"))


def cost_of_whole(flow: Dataflow) -> tuple[int, int]:
    """Parameters and multiply-adds of all that the network runs."""
    params = sum(parameter.numel() for parameter in flow.parameters([*flow.order, flow.output]).values())
    return params, sum(facts.flops for facts in flow.facts.values())


def attribute(root: nn.Module, path: str) -> Any:
    """The value at a dotted path below the root."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def alive_after(order: Sequence[fx.Node], output: fx.Node) -> list[frozenset[fx.Node]]:
    """For every position of the order, the values alive there."""
    index = {node: k for k, node in enumerate(order)} | {output: len(order)}
    last = {node: max((index[user] for user in node.users), default=-1) for node in order}
    alive: list[frozenset[fx.Node]] = []
    current: set[fx.Node] = set()
    for k, node in enumerate(order):
        current.add(node)
        current = {value for value in current if last[value] > k}
        alive.append(frozenset(current))
    return alive


def overwritten_in(flow: Dataflow, nodes: Iterable[fx.Node]) -> frozenset[int]:
    """The memory blocks that the nodes write to."""
    return frozenset().union(*(flow.facts[node].overwritten for node in nodes))


def subgraph(
    flow: Dataflow,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node] | None,
) -> fx.Graph:
    """A graph of `nodes` from the values `inputs` to the tuple of `outputs`, or to the network's result for None.

    Inputs that the nodes would overwrite are copied first, so that the subgraph leaves its arguments as they were.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        values[node] = graph.placeholder(node.name)
    written = overwritten_in(flow, nodes)
    for node in inputs:
        if flow.facts[node].storages & written:
            values[node] = graph.call_method("clone", (values[node],))

    def take(node: fx.Node) -> fx.Node:
        if node not in values:
            values[node] = graph.node_copy(node, take)
        return values[node]

    for node in nodes:
        if node.op != "placeholder":
            take(node)
    if outputs is None:
        graph.output(fx.node.map_arg(flow.output.args[0], take))
    else:
        graph.output(tuple(take(node) for node in outputs))
    mark_only(values, reusable(flow, nodes, inputs, flow.output.all_input_nodes if outputs is None else outputs))
    graph.lint()
    return graph


def carryable(form: Any) -> bool:
    """Whether a value can be in a cut: a tensor, or something without tensors (sizes, numbers)."""
    return isinstance(form, TensorForm) or not any(isinstance(leaf, TensorForm) for leaf in tree_leaves(form))


def _unpacks(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int | str)


def _with_unpacking(node: fx.Node, unpacking: set[fx.Node]) -> list[fx.Node]:
    ordered = [node]
    for user in node.users:
        if user in unpacking and user.args[0] is node:
            ordered += _with_unpacking(user, unpacking)
    return ordered


def _parameters_of(value: Any) -> list[nn.Parameter]:
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, nn.Parameter) and isinstance(value, Tensor) else []
