"""What the rest of one network loses on the stitched features of another, on inputs that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from branchnet.affinity.features.distributed import gathered, world
from branchnet.affinity.networks import Family
from branchnet.affinity.probes import Probe
from branchnet.affinity.stitched.pair_fits import Advance, Candidates, Cut, Key, cuts_of
from branchnet.stitching.channels import copied
from branchnet.stitching.probe_division import chosen_inputs
from branchnet.stitching.stitch import Stitch


class Distance(Protocol):
    """The distance of outputs from a network's own, added up over batches."""

    def prepared(self, own: Any) -> Any:
        """What `add` takes of the network's own outputs, once for all outputs that are judged against them."""

    def add(self, found: Any, own: Any) -> None:
        """Add a batch: the outputs to judge, and the network's own for the same inputs."""

    def value(self, weights: Any = None) -> float:
        """The distance over all inputs, each counting as often as `weights` says, once by default."""


Distances: TypeAlias = dict[Key, list[Distance]]


def judge_stitches(
    family: Family,
    probe: Probe,
    judged: Sequence[int],
    candidates: Candidates,
    distance_of: Callable[[str], Distance],
    device: torch.device,
    advance: Advance,
) -> Distances:
    """Run every network's rest on the stitched features of every other one.

    Under `torch.distributed` each process runs the rests of its share of the pairs, and all return all distances.

    Args:
        family: the networks.
        probe: the inputs.
        judged: numbers of the inputs to judge on.
        candidates: the stitches.
        distance_of: an empty distance for a task.
        device: where the networks are.
        advance: called after each batch.

    Returns:
        for each pair at each location, and each of its stitches, the distance of the outputs from the own ones.
    """
    rank, size = world()
    share = [key for key, found in candidates.items() if found][rank::size]

    def judge() -> Distances:
        return _judged(family, probe, judged, {key: candidates[key] for key in share}, distance_of, device, advance)

    empty: Distances = {key: [] for key in candidates}
    for distances in gathered(judge):
        empty |= distances
    return empty


def _judged(
    family: Family,
    probe: Probe,
    judged: Sequence[int],
    candidates: Candidates,
    distance_of: Callable[[str], Distance],
    device: torch.device,
    advance: Advance,
) -> Distances:
    tasks, depth = family.tasks, len(family.locations)
    targets = {target for _, _, target in candidates}
    members = targets | {source for _, source, _ in candidates}
    distances = {key: [distance_of(tasks[key[2]]) for _ in found] for key, found in candidates.items()}
    for batch in chosen_inputs(probe.batches("judging stitches"), judged):
        cuts = [
            {number: copied(cut) for number, cut in of_all.items()}
            for of_all in cuts_of(family, batch, device, depth, members)
        ]
        own: dict[int, Any] = {}
        for (d, source, target), found in candidates.items():
            network = family.members[target].network
            for stitch, distance in zip(found, distances[d, source, target], strict=True):
                if target not in own:
                    own[target] = distance.prepared(network.head(*copied(cuts[-1][target])))
                distance.add(_rest(network, d, stitch, cuts[d][source]), own[target])
        advance()
    return distances


def best_stitches(candidates: Candidates, distances: Mapping[Key, Sequence[Distance]]) -> Candidates:
    """Keep of every pair's stitches the one whose outputs are nearest.

    Args:
        candidates: the stitches.
        distances: of their outputs.

    Returns:
        one stitch for each pair and location, none where features are equal.
    """
    best: Candidates = {}
    for key, found in candidates.items():
        values = [distance.value() for distance in distances[key]]
        best[key] = [found[values.index(min(values))]] if found else []
    return best


def _rest(network: Any, location: int, stitch: Stitch, cut: Cut) -> Any:
    value = stitch(*copied(cut))
    for stage in network.stages[location + 1 :]:
        value = stage(*value)
    return network.head(*value)
