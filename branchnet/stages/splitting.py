"""Split networks into stages: trace each of them, find what they have in common, cut it, assemble the subgraphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from branchnet.errors import SplitError
from branchnet.stages.costs import StageCosts
from branchnet.stages.graph.common_subgraph import align
from branchnet.stages.graph.dataflow import cost_of_whole
from branchnet.stages.graph.early_leaving import leaving_groups
from branchnet.stages.graph.first_difference import check_common, check_passed, first_difference
from branchnet.stages.identical_stages import identical_prefixes
from branchnet.stages.interface import Example, Interface
from branchnet.stages.location_choice import Locations, behind_transforms, choose, with_samples_first
from branchnet.stages.locations import Location, find_locations
from branchnet.stages.stage_assembly import assemble, in_both_modes, training_places
from branchnet.stages.staged import StagedNetwork
from branchnet.stages.tracing.trace import trace_all, trace_network

Depth: TypeAlias = Literal["common", "auto"]


def split(network: nn.Module, example: Example, *, locations: Locations = None) -> StagedNetwork:
    """Split a network into a chain of stages and a head that together give exactly its outputs.

    The network itself is not changed. The result holds the same parameter and buffer objects: move or copy the result,
    not the network, afterwards; `copy.deepcopy` gives an independent one.

    Args:
        network: any module.
        example: what the network takes: a tensor, a tuple of tensors, or a mapping from keyword names to tensors.
        locations: None for a few meaningful places, an int for that many, balanced in parameters and multiply-adds,
            or names of modules at whose ends to cut, in order.

    Returns:
        The staged network, with the network's exact outputs, in the network's mode.

    Raises:
        SplitError: the network cannot be traced, or not be cut at these places.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    >>> staged = branchnet.split(network, torch.zeros(1, 3, 16, 16), locations=["1", "3"])
    >>> staged.locations, [tensor.shape for cut in staged.cuts for tensor in cut]
    (('1', '3'), [(1, 8, 14, 14), (1, 8, 12, 12)])
    >>> x = torch.randn(2, 3, 24, 24)
    >>> torch.equal(staged(x), network(x))
    True
    """
    return split_all({"network": network}, example, locations=locations)["network"]


def split_all(
    networks: Mapping[str, nn.Module],
    example: Example,
    *,
    locations: Locations = None,
    transforms: Mapping[str, Any] | None = None,
    depth: Depth = "common",
) -> dict[str, StagedNetwork]:
    """Split several networks at the same places of the longest structure that they have in common.

    Layers that are only written in another way (functions for modules, identities and dropout, BatchNorm with an
    activation inside) are the same. So are norms with another `eps`, which goes with the weights: every network keeps
    its own, and so does a node that is copied from it. What differs becomes each network's head; `first_difference` of
    the results says where that begins. A cut carries every tensor that some network needs later, so cuts are the same
    in all of them; a head ignores what it does not need.

    Args:
        networks: networks by task.
        example: one example that all of them take.
        locations: as for `split`; names are those of the first network.
        transforms: preprocessing by task (normalisation, resizing), run first as part of that network's stage 0: a
            module, or weights of torchvision (`ResNet18_Weights.DEFAULT`), whose transforms are meant.
        depth: `"common"`: all networks pass all stages. `"auto"`: where some of them have more in common than all, the
            others may leave the trunk early: their `depth` is smaller, the stages from there on are empty in them, and
            all that they do then is in their heads. Those are chosen that save the most parameters. Locations have the
            names of the first network that passes all of them.

    Returns:
        Staged networks by task, with the same locations, and cuts of the same shapes as far as they pass them.

    Raises:
        SplitError: a network cannot be traced or cut, too little is in common, a transform is neither module nor
            weights, or preprocessing leaves images of different shapes, so that stage 0 cannot be shared.

    >>> def network(classes):
    ...     backbone = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    ...     return nn.Sequential(*backbone, nn.Linear(8, classes)).eval()
    >>> staged = branchnet.split_all({"shape": network(3), "colour": network(5)}, torch.zeros(1, 4))
    >>> staged["shape"].locations == staged["colour"].locations
    True
    >>> staged["colour"](torch.zeros(2, 4)).shape
    torch.Size([2, 5])
    """
    if depth not in get_args(Depth):
        raise SplitError(f"depth is {depth!r}; expected one of {', '.join(map(repr, get_args(Depth)))}")
    traced = trace_all(networks, example, transforms or {})
    alignment = align([network.evaluation for network in traced])
    groups = None
    if depth == "auto" and len(traced) > 2:
        groups = leaving_groups(alignment.flows)
        alignment = align(alignment.flows, groups)
    candidates = find_locations(alignment)
    check_common(alignment, candidates, tuple(networks))
    training = training_places(traced, groups)
    exits = sorted({*alignment.lengths})
    preferred = behind_transforms(in_both_modes(candidates, alignment, training))
    preferred = with_samples_first(preferred, Interface.of(example).batch)
    chosen = choose(candidates, preferred, locations, cost_of_whole(alignment.flows[alignment.reference]), exits)
    check_passed(alignment, chosen, tuple(networks))
    difference = first_difference(alignment, candidates, tuple(networks))
    found = assemble(traced, alignment, chosen, training, example, difference)
    _count_trunk(dict(zip(networks, found, strict=True)), found[alignment.reference].costs)
    return dict(zip(networks, found, strict=True))


def _count_trunk(staged: Mapping[str, StagedNetwork], costs: StageCosts) -> None:
    """Give all networks the costs of the whole trunk, and say who leaves it where and whose weights are identical."""
    if len(staged) > 1:
        depths = {task: network.depth for task, network in staged.items() if network.depth < len(costs)}
        costs = replace(costs, depths=depths, identical=identical_prefixes(staged))
        for network in staged.values():
            network.costs = costs


def candidate_locations(network: nn.Module, example: Example) -> list[Location]:
    """List every place at which a network can be cut.

    Args:
        network: any module.
        example: what the network takes: a tensor, a tuple of tensors, or a mapping from keyword names to tensors.

    Returns:
        The places from input to output, each with the size of its cut and the cost up to it.

    Raises:
        SplitError: the network cannot be traced.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> for place in branchnet.candidate_locations(network, torch.zeros(1, 4)):
    ...     print(place.name, place.shapes, place.params, place.flops)
    0 ((1, 8),) 40 32
    1 ((1, 8),) 40 32
    """
    return find_locations(align([trace_network(network, example).evaluation]))
