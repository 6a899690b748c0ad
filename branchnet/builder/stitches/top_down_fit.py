"""Stitches fitted from the top down: each on the features that really arrive, those above it being in place already.

Every level of a tree at which donors change takes a pass over the inputs of the fit and one over those that judge;
nothing but moments is kept between batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from branchnet.affinity.features.isolation import untouched
from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.stitches.corrections import below_stitches, correct_below_stitches
from branchnet.data.collation import gather, length
from branchnet.errors import AffinityError, BuildError
from branchnet.stages import StagedNetwork, call
from branchnet.stitching.channels import copied
from branchnet.stitching.fitting import LocationMoments, feature_dimensions, inputs_needed
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import ProbeDivision, chosen_inputs, divide_probe, warn_of_noise
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

    Returns:
        for each stitched node or head in words where its weights come from.

    Raises:
        BuildError: features that cannot be mapped, with the edge.
    """
    edges = [edge for edge in foreign_edges(branched) if not isinstance(edge.child.module, StitchedStage)]
    edges = [edge for edge in edges if edge.child.donor in networks]
    if not edges:
        return {}
    warn_of_noise(probe.example)
    notes: dict[str, str] = {}
    division: ProbeDivision | None = None
    with ExitStack() as inside:
        for network in (branched, *{id(net): net for net in networks.values()}.values()):
            inside.enter_context(untouched(network))
        for stage in sorted({edge.stage for edge in edges}):
            level = [edge for edge in edges if edge.stage == stage]
            division, stitches = _stitches(branched, level, networks, probe, kinds or {})
            for edge, stitch in zip(level, stitches, strict=True):
                if stitch is not None:
                    branched.replace(edge.child, StitchedStage(stitch, edge.child.module))
                    notes[edge.child.id] = (
                        f"{edge.child.donor}'s network, stitched to {edge.parent.donor}'s features "
                        f"({stitch.method}, rank {stitch.rank}, R² {stitch.r2:.2f})"
                    )
    for node in branched.members():
        if node.id in notes:
            _take_mode(node.module)
    if corrected and notes and division is not None:
        for correction in correct_below_stitches(branched, networks, probe, division, kinds or {}):
            for node in below_stitches(branched):
                start = notes.get(node.id, f"{node.donor}'s network")
                notes[node.id] = f"{start}, {correction} corrected"
    return notes


def _take_mode(stitched: nn.Module) -> None:
    """New modules are in training mode; they take that of the stage that they belong to."""
    if isinstance(stitched, StitchedStage):
        stitched.training = stitched.stage.training
        stitched.stitch.train(stitched.training)


def _stitches(
    branched: BranchedNetwork,
    level: Sequence[Edge],
    networks: Mapping[str, StagedNetwork],
    probe: Probe,
    kinds: Mapping[str, OutputKind],
) -> tuple[ProbeDivision, list[Stitch | None]]:
    """The stitches of the edges into one stage; None where the features that arrive are the donor's own."""
    level_cuts = _LevelCuts(branched, level, networks)
    division, moments = _prepared(level_cuts, probe)
    for batch in chosen_inputs(probe.batches("stitching"), division.fitted):
        arriving, own = level_cuts.of(batch)
        for sums, edge in zip(moments, level, strict=True):
            _add(sums, edge, [arriving[edge.parent.id], own[edge.child.donor]], length(batch))
    dtype = next((p.dtype for p in branched.parameters() if p.is_floating_point()), torch.float32)
    candidates = [
        [stitch.to(level_cuts.device) for stitch in sums.stitches(0, 1, edge.parent.donor, edge.child.donor, dtype)]
        for sums, edge in zip(moments, level, strict=True)
    ]
    distances = [
        [OutputDistance(kinds.get(edge.child.donor, "regression")) for _ in found]
        for edge, found in zip(level, candidates, strict=True)
    ]
    for batch in chosen_inputs(probe.batches("judging stitches"), division.judged):
        arriving, own = level_cuts.of(batch)
        for edge, found, judged in zip(level, candidates, distances, strict=True):
            rest = level_cuts.rest(edge.child.donor)
            wanted = run(rest, copied(own[edge.child.donor])) if found else None
            for stitch, distance in zip(found, judged, strict=True):
                distance.add(run(rest, stitch(*copied(arriving[edge.parent.id]))), wanted)
    return division, [
        _best(edge, found, judged) for edge, found, judged in zip(level, candidates, distances, strict=True)
    ]


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


def _add(sums: LocationMoments, edge: Edge, cuts: list[tuple[Any, ...]], inputs: int) -> None:
    try:
        sums.add(cuts, inputs)
    except AffinityError as error:
        raise BuildError(f"{edge.parent.id} cannot be stitched to {edge.child.id}: {error}") from error


def _prepared(level_cuts: _LevelCuts, probe: Probe) -> tuple[ProbeDivision, list[LocationMoments]]:
    _, own = level_cuts.of(probe.example)
    _, of_one = level_cuts.of(gather(probe.example, slice(0, 1)))
    inputs = length(probe.example)
    needed, dimensions = 1, []
    for edge in level_cuts.level:
        cut = own[edge.child.donor]
        single, maker = of_one[edge.child.donor], level_cuts.networks[edge.child.donor].stages[edge.stage - 1]
        dimensions.append(feature_dimensions(cut, single, maker, edge.child.module))
        needed = max(needed, inputs_needed(cut, inputs, dimensions[-1]))
    division = divide_probe(probe.inputs, needed)
    return division, [LocationMoments(found, [(0, 1)], len(division.fitted)) for found in dimensions]


class _LevelCuts:
    """The cuts before one stage: what arrives at the edges into it, and what their donors would make there."""

    def __init__(self, branched: BranchedNetwork, level: Sequence[Edge], networks: Mapping[str, StagedNetwork]) -> None:
        self.branched, self.level, self.networks = branched, level, networks
        self.stage = level[0].stage
        self.device = next((p.device for p in branched.parameters()), torch.device("cpu"))

    def of(self, batch: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
        """The cuts that arrive, by the id of the node that makes them, and the donors' own, by task."""
        arriving = {}
        for edge in self.level:
            if edge.parent.id not in arriving:
                arriving[edge.parent.id] = self._before(self.branched.path(edge.child.tasks[0]), batch)
        own = {edge.child.donor: self._before(self.networks[edge.child.donor], batch) for edge in self.level}
        return arriving, own

    def _before(self, network: Any, batch: Any) -> tuple[Any, ...]:
        cut: tuple[Any, ...] = run(network.stages[: self.stage], on_device(batch, self.device), first=True)
        return cut

    def rest(self, donor: str) -> list[nn.Module]:
        """The donor's stages from the level's on, and its head."""
        network = self.networks[donor]
        return [*network.stages[self.stage :], network.head]


def run(modules: Sequence[nn.Module] | Iterator[nn.Module], value: Any, *, first: bool = False) -> Any:
    """Run stages one after another.

    Args:
        modules: stages, or stages and a head.
        value: the cut before them, or the inputs of the network.
        first: whether `value` is the inputs of the network.

    Returns:
        the cut after them, or the head's output.
    """
    for module in modules:
        value = call(module, value) if first else module(*value)
        first = False
    return value
