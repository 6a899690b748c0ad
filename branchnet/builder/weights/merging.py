"""Nodes that are the mean of several donors after their units were put into one order.

Every space (see `symmetries`) is ordered as in the donor of the node where its units are made, separately for each
branch. So every node below gets its features in one order, and a task whose donor is the only one on its path keeps
that donor's weights as they are. Networks with BatchNorm get its statistics estimated again on the probe, others the
variance of their features back (`variance_correction`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.network.node import Node, node_id
from branchnet.builder.weights.averaging import average_nodes
from branchnet.builder.weights.normalisation import estimate_batchnorm
from branchnet.builder.weights.symmetries import Symmetries, find_symmetries
from branchnet.builder.weights.unit_matching import match_units
from branchnet.builder.weights.unit_spaces import permuted
from branchnet.builder.weights.variance_correction import restore_variance
from branchnet.data.collation import length
from branchnet.errors import BuildError
from branchnet.stages import StagedNetwork

Orders = Mapping[str, Mapping[int, Tensor]]
"""For each task the order of its donor's units in each space."""


def merge_donors(branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], probe: Probe) -> dict[str, str]:
    """Give each node the mean of its tasks' donors, aligned by their activations on the probe.

    Args:
        branched: the network, changed in place.
        networks: the donors by task.
        probe: inputs that all donors are run on.

    Returns:
        per node in words what was aligned.

    Raises:
        BuildError: donors of different structure, or whose heads share tensors with their stages, or a probe in batches
            of one input.
    """
    if max(probe.sizes) < 2:
        raise BuildError(
            f"init='merge' estimates statistics of features, and the probe has batches of {max(probe.sizes)}; expected "
            "batches of two inputs or more"
        )
    networks = {task: networks[task] for task in branched.tasks}
    _refuse_tied_heads(networks)
    symmetries = find_symmetries(networks, probe.example)
    orders = _orders(branched, networks, symmetries, probe)

    def adapt(task: str, stage: int | str, name: str, tensor: Tensor) -> Tensor:
        return permuted(tensor, symmetries.tensors.get((stage, name), {}), orders[task])

    equal = average_nodes(branched, networks, adapt)
    # Heads are no means, but read features whose units were put into another order.
    with torch.no_grad():
        for task, head in zip(branched.tasks, branched.heads, strict=True):
            for name, tensor in tensors_of(networks[task].head).items():
                tensors_of(head)[name].copy_(adapt(task, task, name, tensor))
    device = next((tensor.device for tensor in branched.parameters()), torch.device("cpu"))

    def batches() -> Iterator[Any]:
        return (on_device(batch, device) for batch in probe.batches("merging") if length(batch) > 1)

    changed = _changed(branched, equal)
    averaged = [node.id for node in changed if not node.is_head and node.id not in equal]
    if not estimate_batchnorm(branched, [node.module for node in changed], batches()):
        restore_variance(branched, networks, averaged, adapt, batches)
    return _notes(branched, symmetries)


def _refuse_tied_heads(networks: Mapping[str, StagedNetwork]) -> None:
    for task, network in networks.items():
        inside = {id(tensor) for tensor in network.stages.parameters()}
        if tied := [name for name, tensor in network.head.named_parameters() if id(tensor) in inside]:
            raise BuildError(
                f"the head of {task!r} shares {tied} with its stages, which init='merge' would untie; expected heads "
                "with parameters of their own; use init='donor'"
            )


def _orders(
    branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], symmetries: Symmetries, probe: Probe
) -> Orders:
    """Match each donor's units with those of the donor of the node where they are made."""
    tree = branched.tree
    wanted: dict[tuple[str, str], list[int]] = defaultdict(list)
    # One order for each node where units are made, not one for each task: later nodes of the branch, and nodes that
    # several branches share, then read all of them in the same order.
    for space, stage in symmetries.origin_stages.items():
        for task in tree.tasks:
            reference = branched.donors[stage][tree.cluster_of(task, stage)]
            if reference != task:
                wanted[reference, task].append(space)
    orders: dict[str, dict[int, Tensor]] = {task: {} for task in tree.tasks}
    for (reference, task), spaces in wanted.items():
        orders[task] |= match_units(symmetries, networks[reference], networks[task], probe, spaces)
    return orders


def _changed(branched: BranchedNetwork, equal: set[str]) -> list[Node]:
    """The nodes and heads that are, or are fed by, a mean of different weights."""
    tree = branched.tree
    changed = []
    for node in branched.members():
        last = min(node.stage, tree.depth - 1)
        path = [node_id(d, tree.cluster_of(node.tasks[0], d)) for d in range(last + 1)]
        if not equal.issuperset(path):
            changed.append(node)
    return changed


def _notes(branched: BranchedNetwork, symmetries: Symmetries) -> dict[str, str]:
    notes = {}
    for stage, (clusters, donors) in enumerate(zip(branched.tree.partitions, branched.donors, strict=True)):
        units = sum(symmetries.sizes[space] for space, origin in symmetries.origin_stages.items() if origin == stage)
        for number, (cluster, donor) in enumerate(zip(clusters, donors, strict=True)):
            if len(cluster) > 1:
                notes[node_id(stage, number)] = f"mean of {', '.join(cluster)}, {units} units in {donor}'s order"
    return notes
