"""What the rest of one network loses on the stitched features of another, on inputs that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from branchnet.affinity.networks import Family
from branchnet.affinity.probes import Probe
from branchnet.affinity.stitched.pair_fits import Advance, Candidates, Cut, cuts_of
from branchnet.stitching.channels import copied
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import chosen_inputs
from branchnet.stitching.stitch import Stitch

Distances = dict[tuple[int, int, int], list[OutputDistance]]


def judge_stitches(
    family: Family,
    probe: Probe,
    judged: Sequence[int],
    candidates: Candidates,
    kinds: Mapping[str, OutputKind],
    device: torch.device,
    advance: Advance,
) -> Distances:
    """Run every network's rest on the stitched features of every other one.

    Args:
        family: the networks.
        probe: the inputs.
        judged: numbers of the inputs to judge on.
        candidates: the stitches.
        kinds: how the outputs of some tasks are compared.
        device: where the networks are.
        advance: called after each batch.

    Returns:
        for each pair at each location, and each of its stitches, the distance of the outputs from the own ones.
    """
    depth = len(family.members[0].stages)
    tasks = family.tasks
    distances: Distances = {
        key: [OutputDistance(kinds.get(tasks[key[2]], "regression")) for _ in found]
        for key, found in candidates.items()
    }
    for batch in chosen_inputs(probe.batches("judging stitches"), judged):
        cuts = [[copied(cut) for cut in row] for row in cuts_of(family, batch, device, depth)]
        own = [member.network.head(*copied(cut)) for member, cut in zip(family.members, cuts[-1], strict=True)]
        for (d, source, target), found in candidates.items():
            for stitch, distance in zip(found, distances[d, source, target], strict=True):
                distance.add(_rest(family.members[target].network, d, stitch, cuts[d][source]), own[target])
        advance()
    return distances


def best_stitches(candidates: Candidates, distances: Distances) -> Candidates:
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
