"""Stitches fitted from the top down: each on the features that really arrive, those above it being in place already.

At every level of a tree at which donors change, the inputs of the fit and those that judge go on from where they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from branchnet.affinity.features.isolation import untouched
from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.stitches.corrections import below_stitches, correct_below_stitches
from branchnet.builder.stitches.probe_features import ArrivingFeatures, OwnFeatures, run
from branchnet.data.collation import gather, length
from branchnet.errors import AffinityError, BuildError
from branchnet.stages import StagedNetwork, call
from branchnet.stitching.channels import copied
from branchnet.stitching.fitting import LocationMoments, feature_dimensions, inputs_needed
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import divide_probe, warn_of_noise
from branchnet.stitching.stitch import Stitch, StitchedStage


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
        """The stage of the child."""
        return self.child.stage


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
    with ExitStack() as inside:
        for network in (branched, *{id(net): net for net in networks.values()}.values()):
            inside.enter_context(untouched(network))
        dimensions, needed = _channels(edges, networks, probe)
        if own is None:
            own = OwnFeatures(networks, probe, divide_probe(probe.inputs, needed), _device(branched))
        arriving = ArrivingFeatures(branched, own)
        for stage in sorted({edge.stage for edge in edges}):
            level = [edge for edge in edges if edge.stage == stage]
            for edge, stitch in zip(level, _stitches(arriving, level, dimensions, kinds or {}), strict=True):
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


def _stitches(
    arriving: ArrivingFeatures,
    level: Sequence[Edge],
    dimensions: Mapping[str, dict[int, int]],
    kinds: Mapping[str, OutputKind],
) -> list[Stitch | None]:
    """The stitches of the edges into one stage; None where the features that arrive are the donor's own."""
    own = arriving.own
    candidates = _candidates(arriving, level, dimensions)
    distances = [
        [OutputDistance(kinds.get(edge.child.donor, "regression")) for _ in found]
        for edge, found in zip(level, candidates, strict=True)
    ]
    unexplained = [OutputDistance() for _ in level]
    for batch in own.batches("judged"):
        for edge, found, judged, missing in zip(level, candidates, distances, unexplained, strict=True):
            rest = own.rest(edge.child.donor, edge.stage)
            for stitch, distance in zip(found, judged, strict=True):
                mapped = stitch(*copied(arriving.after(batch, edge.parent.id)))
                if stitch is found[0]:  # by least squares
                    wanted = own.cut(batch, edge.child.donor, edge.stage)
                    missing.add(*(_mapped_tensors(stitch, cut) for cut in (mapped, wanted)))
                distance.add(run(rest, mapped), own.output(batch, edge.child.donor))
    best = [_best(edge, found, judged) for edge, found, judged in zip(level, candidates, distances, strict=True)]
    for chosen, missing in zip(best, unexplained, strict=True):
        if chosen is not None:
            chosen.r2 = 1 - missing.value()
    return best


def _mapped_tensors(stitch: Stitch, cut: tuple[Any, ...]) -> list[torch.Tensor]:
    """What a stitch maps of a cut, each tensor as (B, channels, positions)."""
    tensors = {index: cut[index].movedim(affine.dimension, 1) for index, affine in stitch.affine_maps.items()}
    return [tensor.reshape(*tensor.shape[:2], -1) for tensor in tensors.values()]


def _candidates(
    arriving: ArrivingFeatures, level: Sequence[Edge], dimensions: Mapping[str, dict[int, int]]
) -> list[list[Stitch]]:
    """For each edge a stitch by every method; edges from the same node share that node's moments."""
    own = arriving.own
    groups: dict[tuple[str, str], list[Edge]] = {}
    for edge in level:
        groups.setdefault((edge.parent.id, str(dimensions[edge.child.id])), []).append(edge)
    moments = {
        key: LocationMoments(
            dimensions[edges[0].child.id], [(0, 1 + k) for k in range(len(edges))], len(own.division.fitted)
        )
        for key, edges in groups.items()
    }
    for batch in own.batches("fitted"):
        for key, edges in groups.items():
            cuts = [own.cut(batch, edge.child.donor, edge.stage) for edge in edges]
            _add(moments[key], edges, [arriving.after(batch, key[0]), *cuts], len(batch))
    dtype = next((p.dtype for p in arriving.branched.parameters() if p.is_floating_point()), torch.float32)
    found = {
        edge.child.id: moments[key].stitches(0, 1 + k, edge.parent.donor, edge.child.donor, dtype)
        for key, edges in groups.items()
        for k, edge in enumerate(edges)
    }
    return [[stitch.to(own.device) for stitch in found[edge.child.id]] for edge in level]


def _best(edge: Edge, found: Sequence[Stitch], judged: Sequence[OutputDistance]) -> Stitch | None:
    """The stitch whose outputs are nearest to the own ones; None where the features were equal.

    Raises:
        BuildError: outputs that are not finite, whatever the stitch.
    """
    if not found:
        return None
    values = [distance.value() for distance in judged]
    if min(values) == math.inf:
        raise BuildError(
            f"{edge.child.donor}'s network gives NaN or infinity on the stitched features of {edge.parent.id} "
            f"({edge.parent.donor}'s) that arrive at {edge.child.id}; expected finite outputs: branch elsewhere, or "
            "take init='donor' and train"
        )
    return found[values.index(min(values))]


def _add(sums: LocationMoments, edges: Sequence[Edge], cuts: list[tuple[Any, ...]], inputs: int) -> None:
    try:
        sums.add(cuts, inputs)
    except AffinityError as error:
        children = ", ".join(edge.child.id for edge in edges)
        raise BuildError(f"{edges[0].parent.id} cannot be stitched to {children}: {error}") from error


def _channels(
    edges: Sequence[Edge], networks: Mapping[str, StagedNetwork], probe: Probe
) -> tuple[dict[str, dict[int, int]], int]:
    """For the child of each edge the dimensions of the channels, and how many inputs all stitches need."""
    inputs, needed, dimensions = length(probe.example), 1, {}
    for donor in dict.fromkeys(edge.child.donor for edge in edges):
        mine = [edge for edge in edges if edge.child.donor == donor]
        stages = networks[donor].stages[: max(edge.stage for edge in mine)]
        cuts = [_cuts(stages, gather(probe.example, slice(0, count))) for count in (inputs, 1)]
        for edge in mine:
            cut, of_one = (found[edge.stage - 1] for found in cuts)
            dimensions[edge.child.id] = feature_dimensions(cut, of_one, stages[edge.stage - 1], edge.child.module)
            needed = max(needed, inputs_needed(cut, inputs, dimensions[edge.child.id]))
    return dimensions, needed


def _cuts(stages: Sequence[nn.Module] | nn.ModuleList, inputs: Any) -> list[tuple[Any, ...]]:
    """The cut after each stage."""
    device = next((p.device for stage in stages for p in stage.parameters()), torch.device("cpu"))
    value, found = on_device(inputs, device), []
    for number, stage in enumerate(stages):
        value = stage(*copied(value)) if number else call(stage, value)
        found.append(value)
    return found
