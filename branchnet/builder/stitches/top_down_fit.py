"""Stitches fitted from the top down: each on the features that really arrive, those above it being in place already.

At every level of a tree at which donors change, the inputs of the fit and those that judge go on from where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from branchnet.affinity.features.isolation import untouched
from branchnet.affinity.probes import Probe
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.stitches.corrections import below_stitches, correct_below_stitches
from branchnet.builder.stitches.probe_features import ArrivingFeatures, OwnFeatures
from branchnet.builder.stitches.stitch_fit import fit_stitches
from branchnet.errors import BuildError
from branchnet.stages import StagedNetwork
from branchnet.stitching.output_distances import OutputKind
from branchnet.stitching.probe_division import divide_probe, warn_of_noise
from branchnet.stitching.stitch import Stitch, StitchedStage
from branchnet.utils.freed_memory import keeping_freed_memory


@dataclass(frozen=True)
class Edge:
    """A node or head whose donor is another one than that of the node before it.

    Attributes:
        parent: the node before it.
        child: the node or head.
    """

    parent: Node
    child: Node

    @property
    def stage(self) -> int:
        """The stage of the child; of a head the number of stages before it."""
        return self.parent.stage + 1


def foreign_edges(branched: BranchedNetwork) -> list[Edge]:
    """List the edges where the donor changes, from input to output.

    Args:
        branched: the network.

    Returns:
        one for each node or head that another donor's features arrive at.
    """
    members = {node.id: node for node in branched.members()}
    edges = [Edge(members[parent], child) for child in members.values() if (parent := branched.parent_of(child))]
    return [edge for edge in edges if edge.parent.donor != edge.child.donor]


def stitch_donors(
    branched: BranchedNetwork,
    networks: Mapping[str, StagedNetwork],
    probe: Probe,
    kinds: Mapping[str, OutputKind] | None = None,
    *,
    corrected: bool = True,
    own: OwnFeatures | None = None,
) -> dict[str, str]:
    """Put a stitch on every edge where the donor changes, unless there is one already.

    Of the maps by ridge regression, half-way and variance-matched each edge gets the one with which the donor's own
    rest gives outputs nearest to its own on inputs that nothing was fitted on.

    Args:
        branched: nodes and heads as copies of their donors; changed in place.
        networks: the donors by task; edges into nodes of other donors stay as they are.
        probe: inputs of all networks.
        kinds: how the outputs of some tasks are compared; `regression` for the others.
        corrected: whether to correct channel statistics and linear heads below the stitches, too.
        own: what the donors make of the probe, for several trees of the same donors; by default it is computed, on as
            many inputs as the stitches need.

    Returns:
        for each stitched node or head in words where its weights come from.

    Raises:
        BuildError: features that cannot be mapped, with the edge; unknown tasks or kinds.
    """
    _check_kinds(branched, kinds or {})
    edges = [edge for edge in foreign_edges(branched) if not isinstance(edge.child.module, StitchedStage)]
    edges = [edge for edge in edges if edge.child.donor in networks]
    if not edges:
        return {}
    warn_of_noise(probe.example)
    notes: dict[str, str] = {}
    with keeping_freed_memory(), ExitStack() as inside:
        for network in (branched, *{id(net): net for net in networks.values()}.values()):
            inside.enter_context(untouched(network))
        if own is None:
            own = OwnFeatures(networks, probe, _device(branched))
            needed = max(own.inputs_needed(edge.child.donor, edge.stage) for edge in edges)
            own.division = divide_probe(probe.inputs, needed)
        arriving = ArrivingFeatures(branched, own)
        for junction in _junctions(edges):
            for edge, stitch in zip(junction, _stitches(arriving, junction, kinds or {}), strict=True):
                if stitch is not None:
                    branched.replace(edge.child, StitchedStage(stitch, edge.child.module))
                    notes[edge.child.id] = (
                        f"{edge.child.donor}'s network, stitched to {edge.parent.donor}'s features "
                        f"({stitch.method}, rank {stitch.rank}, R² {stitch.r2:.2f})"
                    )
    for node in branched.members():
        if node.id in notes:
            _take_mode(node.module)
    if corrected and notes:
        for correction in correct_below_stitches(branched, own, kinds or {}):
            for node in below_stitches(branched):
                start = notes.get(node.id, f"{node.donor}'s network")
                notes[node.id] = f"{start}, {correction} corrected"
    return notes


def _check_kinds(branched: BranchedNetwork, kinds: Mapping[str, OutputKind]) -> None:
    for task, kind in kinds.items():
        if task not in branched.tasks:
            raise BuildError(f"kinds names the unknown task {task!r}; expected some of {list(branched.tasks)}")
        if kind not in get_args(OutputKind):
            raise BuildError(f"the kind of {task!r} is {kind!r}; expected one of {list(get_args(OutputKind))}")


def _take_mode(stitched: nn.Module) -> None:
    """New modules are in training mode; they take that of the stage that they belong to."""
    if isinstance(stitched, StitchedStage):
        stitched.training = stitched.stage.training
        stitched.stitch.train(stitched.training)


def _device(branched: BranchedNetwork) -> torch.device:
    return next((p.device for p in branched.parameters()), torch.device("cpu"))


def _junctions(edges: Sequence[Edge]) -> list[list[Edge]]:
    """The edges from each node, nodes from input to output: they share what is summed of the node's features."""
    found: dict[str, list[Edge]] = {}
    for edge in sorted(edges, key=lambda edge: edge.stage):
        found.setdefault(edge.parent.id, []).append(edge)
    return list(found.values())


def _stitches(
    arriving: ArrivingFeatures, junction: Sequence[Edge], kinds: Mapping[str, OutputKind]
) -> list[Stitch | None]:
    parent, stage = junction[0].parent, junction[0].stage
    try:
        return fit_stitches(
            arriving.own,
            lambda batch: arriving.after(batch, parent.id),
            parent.donor,
            [edge.child.donor for edge in junction],
            stage,
            kinds,
        )
    except BuildError as error:
        children = ", ".join(edge.child.id for edge in junction)
        raise BuildError(f"{parent.id} cannot be stitched to {children}: {error}") from error
