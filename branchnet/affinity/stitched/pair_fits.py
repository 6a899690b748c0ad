"""Stitches between every two networks at every location, from moments that are accumulated for all pairs together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, TypeAlias

import torch

from branchnet.affinity.networks import Family
from branchnet.affinity.probes import Probe, on_device
from branchnet.data.collation import gather, length
from branchnet.stages import call
from branchnet.stitching.fitting import LocationMoments, feature_dimensions, inputs_needed
from branchnet.stitching.probe_division import MOST_JUDGED, ProbeDivision, chosen_inputs, divide_probe
from branchnet.stitching.stitch import Stitch

Cut: TypeAlias = tuple[Any, ...]
Candidates: TypeAlias = dict[tuple[int, int, int], list[Stitch]]
"""By (location, number of the source network, number of the target network): a stitch by every method."""

FEWEST_JUDGED = 16
MOMENT_BYTES = 2**30
"""Memory for moments; where those of all locations take more, the inputs are read several times."""
Advance: TypeAlias = Callable[[], None]


def cuts_of(family: Family, batch: Any, device: torch.device, depth: int) -> Iterator[list[Cut]]:
    """Run all networks side by side.

    Args:
        family: the networks.
        batch: inputs.
        device: where the networks are.
        depth: how many stages to run.

    Yields:
        for each location the cut of every network.
    """
    cuts: list[Cut] = []
    for stage in range(depth):
        if stage:
            cuts = [member.stages[stage](*cut) for member, cut in zip(family.members, cuts, strict=True)]
        else:
            cuts = [call(member.stages[0], on_device(batch, device)) for member in family.members]
        yield cuts


def prepare_fits(family: Family, probe: Probe, device: torch.device) -> tuple[ProbeDivision, list[dict[int, int]]]:
    """Look at a few inputs: where every location has its channels, and how many inputs a fit needs.

    Args:
        family: the networks.
        probe: the inputs.
        device: where the networks are.

    Returns:
        the inputs to fit and to judge on, and for each location the dimensions of the channels.
    """
    inputs, needed, dimensions = length(probe.example), 1, []
    first = family.members[0]
    stages, depth = first.stages, len(first.stages)
    single = list(cuts_of(family, gather(probe.example, slice(0, 1)), device, depth))
    for d, (cuts, of_one) in enumerate(zip(cuts_of(family, probe.example, device, depth), single, strict=True)):
        after = stages[d + 1] if d + 1 < depth else first.network.head
        dimensions.append(feature_dimensions(cuts[0], of_one[0], stages[d], after))
        needed = max(needed, inputs_needed(cuts[0], inputs, dimensions[-1]))
    return divide_probe(probe.inputs, needed, _most_judged(family, probe.inputs)), dimensions


def _most_judged(family: Family, inputs: int) -> int:
    """So many that running all rests takes about as long as running all networks on the probe, between 16 and 64."""
    networks, depth = len(family.members), len(family.locations)
    return max(FEWEST_JUDGED, min(MOST_JUDGED, 2 * inputs // (depth * max(1, networks - 1))))


def fit_pairs(
    family: Family,
    probe: Probe,
    fitted: Sequence[int],
    dimensions: Sequence[dict[int, int]],
    device: torch.device,
    advance: Advance,
) -> Candidates:
    """Fit the stitch of every ordered pair at every location, by every method.

    Args:
        family: the networks.
        probe: the inputs.
        fitted: numbers of the inputs to fit on.
        dimensions: for each location the dimensions of the channels of its tensors.
        device: where the networks are.
        advance: called after each batch.

    Returns:
        the stitches; none where the features of two networks are equal.
    """
    pairs = list(permutations(range(len(family.members)), 2))
    tasks = family.tasks
    candidates: Candidates = {}
    for locations in _passes(family, probe, dimensions, device):
        sums = {d: LocationMoments(dimensions[d], pairs, len(fitted), seed=d) for d in locations}
        for batch in chosen_inputs(probe.batches("stitching"), fitted):
            for d, cuts in enumerate(cuts_of(family, batch, device, max(locations) + 1)):
                if d in sums:
                    sums[d].add(cuts, length(batch))
            advance()
        for d, moments in sums.items():
            for i, j in pairs:
                candidates[d, i, j] = [
                    stitch.to(device) for stitch in moments.stitches(i, j, tasks[i], tasks[j], _dtype(family))
                ]
    return candidates


def _dtype(family: Family) -> torch.dtype:
    parameters = family.members[0].network.parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def _passes(
    family: Family, probe: Probe, dimensions: Sequence[dict[int, int]], device: torch.device
) -> list[list[int]]:
    """Locations whose moments fit into memory together."""
    passes: list[list[int]] = [[]]
    held = 0
    for d, cuts in enumerate(cuts_of(family, probe.example, device, len(dimensions))):
        size = sum(_bytes(cuts, index, dimension) for index, dimension in dimensions[d].items())
        if passes[-1] and held + size > MOMENT_BYTES:
            passes.append([])
            held = 0
        passes[-1].append(d)
        held += size
    return passes


def _bytes(cuts: Sequence[Cut], index: int, dimension: int) -> int:
    channels: int = sum(cut[index].shape[dimension] for cut in cuts)
    return 8 * channels * channels
