"""Split networks into stages: follow each of them, find what they have in common, cut it, put the pieces together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from branchnet.stages.first_difference import check_common
from branchnet.stages.graph.common_subgraph import align
from branchnet.stages.interface import Example
from branchnet.stages.location_choice import Locations, choose
from branchnet.stages.locations import Location, find_locations
from branchnet.stages.stage_assembly import assemble, cost_of_whole
from branchnet.stages.staged import StagedNetwork
from branchnet.stages.tracing.trace import follow, follow_all


def split(network: nn.Module, example: Example, *, locations: Locations = None) -> StagedNetwork:
    """Split a network into a chain of stages and a head that together give exactly its outputs.

    The network itself is not changed. The result holds the same parameter and buffer objects: move or copy the result,
    not the network, afterwards; `copy.deepcopy` gives an independent one.

    Args:
        network: any module.
        example: what the network takes: a tensor, a tuple of tensors, or a mapping from keyword names to tensors.
        locations: None for a few meaningful places, an int for that many, balanced in parameters and multiply-adds,
            or names of modules at whose ends to cut, in order.

    Raises:
        SplitError: the network cannot be followed, or not be cut at these places.
    """
    return split_all({"network": network}, example, locations=locations)["network"]


def split_all(
    networks: Mapping[str, nn.Module],
    example: Example,
    *,
    locations: Locations = None,
    transforms: Mapping[str, nn.Module] | None = None,
) -> dict[str, StagedNetwork]:
    """Split several networks at the same places of the longest structure that they have in common.

    What differs becomes each network's head. A cut carries every tensor that some network needs later, so cuts are
    alike in all of them; a head ignores what it does not need.

    Args:
        networks: networks by task.
        example: one example that all of them take.
        locations: as for `split`; names are those of the first network.
        transforms: preprocessing by task (normalisation, resizing), run first as part of that network's stage 0.

    Raises:
        SplitError: a network cannot be followed or cut, too little is in common, or preprocessing leaves images of
            different shapes, so that stage 0 cannot be shared.
    """
    followed = follow_all(networks, example, transforms or {})
    alignment = align([network.evaluation for network in followed])
    candidates = find_locations(alignment)
    check_common(alignment, candidates, tuple(networks))
    chosen = choose(candidates, locations, cost_of_whole(alignment.flows[0]))
    return dict(zip(networks, assemble(followed, alignment, chosen, example), strict=True))


def candidate_locations(network: nn.Module, example: Example) -> list[Location]:
    """Every place at which the network can be cut, in order, with the size of the cut and the cost up to it."""
    return find_locations(align([follow(network, example).evaluation]))
