"""Means over the positions of images, of which some networks keep the dimensions and flatten, and others drop them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.operations import operation, position_mean
from branchnet.stages.graph.propagation import TensorForm

_FLATTENED = ("function", "flatten", 1.0, -1.0)


def even_out_means(flows: Sequence[Dataflow]) -> bool:
    """Where one network flattens a mean that keeps its dimensions, let the others do so in place of dropping them.

    Args:
        flows: one dataflow per network; their graphs may change, and are to be read again then.

    Returns:
        Whether any graph has changed.
    """
    if not any(_flattens(flow, node) for flow in flows for node in flow.order):
        return False
    dropping = [(flow, node) for flow in flows for node in flow.order if position_mean(flow, node) is False]
    for flow, node in dropping:
        _keep_and_flatten(flow, node)
    return bool(dropping)


def _flattens(flow: Dataflow, node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source in flow.free or not position_mean(flow, source):
        return False
    return bool(operation(flow, node).signature == _FLATTENED)


def _keep_and_flatten(flow: Dataflow, node: fx.Node) -> None:
    """Write a mean that drops the positions as one that keeps them, and its flattening, which is a view."""
    graph, facts = flow.trace.graph, flow.facts[node]
    assert isinstance(facts.form, TensorForm)
    with graph.inserting_before(node):
        kept = graph.call_function(torch.mean, (node.args[0], (2, 3), True))
        flat = graph.call_function(torch.flatten, (kept, 1))
    kept.meta, flat.meta = dict(node.meta), dict(node.meta)
    form = TensorForm((*facts.form.shape, 1, 1), facts.form.dtype)
    flow.propagation.facts[kept] = replace(facts, form=form)
    flow.propagation.facts[flat] = replace(facts, flops=0, activation_bytes=0, uncounted=frozenset())
    node.replace_all_uses_with(flat)
    graph.erase_node(node)
