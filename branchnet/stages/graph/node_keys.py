"""A number per node that says what it computes, equal for equal computations in different networks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

from branchnet.stages.graph.dataflow import Dataflow, attribute
from branchnet.stages.graph.operations import PASSING, Operation, operation
from branchnet.stages.graph.propagation import TensorForm
from branchnet.stages.graph.settings import form
from branchnet.stages.tracing.constants import content, is_state


def node_keys(flow: Dataflow, *, see_through: bool = False) -> dict[fx.Node, int]:
    """A number per node that says what it computes; equal numbers in two networks mean the same computation.

    A value that was overwritten in place since it was made counts as a different value.

    Args:
        flow: one network.
        see_through: whether what returns its argument has the argument's number.

    Returns:
        The numbers of the nodes that are not free.
    """
    keys: dict[fx.Node, int] = {}
    seen: Counter[int] = Counter()
    writers = _Writers(flow)
    for node in flow.order:
        done = operation(flow, node)
        if see_through and done.signature == PASSING:
            keys[node] = keys[done.arguments]
        else:
            arguments = _argument_keys(flow, node, done, keys, writers)
            key = hash((done.signature, arguments, _form_key(flow.facts[node].form)))
            # Two equal computations in one network (siblings without parameters) are numbered, so each has one key.
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


def _argument_keys(flow: Dataflow, node: fx.Node, done: Operation, keys: dict[fx.Node, int], writers: _Writers) -> Any:
    def key(source: fx.Node) -> Any:
        value = _free_key(flow, source) if source in flow.free else keys[source]
        return (value, writers.since(source))

    arguments = _plain(done.arguments, key)
    return (tuple(sorted(arguments, key=repr)) if done.commutative else arguments, writers.of(flow.facts[node].state))


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


def _form_key(form: Any) -> Any:
    if isinstance(form, TensorForm):
        return (form.shape, str(form.dtype))
    if isinstance(form, tuple | list):
        return tuple(_form_key(item) for item in form)
    return repr(form) if isinstance(form, bool | int | float | str | torch.dtype | None) else type(form).__name__
