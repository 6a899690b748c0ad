"""Stitches between every two networks at every location, from moments that are accumulated for all pairs together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from branchnet.affinity.features.distributed import gathered, world
from branchnet.affinity.networks import Family
from branchnet.affinity.probes import Probe, on_device
from branchnet.data.collation import gather, length
from branchnet.stages import call
from branchnet.stitching.fitting import LocationMoments, feature_dimensions, inputs_needed
from branchnet.stitching.probe_division import MOST_JUDGED, ProbeDivision, chosen_inputs, divide_probe
from branchnet.stitching.stitch import Stitch

Cut: TypeAlias = tuple[Any, ...]
Key: TypeAlias = tuple[int, int, int]
"""Location, number of the source network, number of the target network."""
Candidates: TypeAlias = dict[Key, list[Stitch]]
"""A stitch by every method."""

FEWEST_JUDGED = 16
MOMENT_BYTES = 2**30
"""Memory for moments; where those of all locations take more, the inputs are read several times."""
Advance: TypeAlias = Callable[[], None]


def cuts_of(
    family: Family, batch: Any, device: torch.device, depth: int, members: Collection[int] | None = None
) -> Iterator[dict[int, Cut]]:
    """Run networks side by side.

    Args:
        family: the networks.
        batch: inputs.
        device: where the networks are.
        depth: how many stages to run.
        members: numbers of the networks to run, all by default.

    Yields:
        for each location the cut of every network by its number.
    """
    numbers = range(len(family.members)) if members is None else sorted(members)
    cuts: dict[int, Cut] = {}
    for stage in range(depth):
        for number in numbers:
            module = family.members[number].stages[stage]
            cuts[number] = module(*cuts[number]) if stage else call(module, on_device(batch, device))
        yield dict(cuts)


def prepare_fits(family: Family, probe: Probe, device: torch.device) -> tuple[ProbeDivision, list[dict[int, int]]]:
    """Look at a few inputs in one network: where every location has its channels, and how many inputs are needed.

    Args:
        family: the networks.
        probe: the inputs.
        device: where the networks are.

    Returns:
        the inputs to fit and to judge on, and for each location the dimensions of the channels.
    """
    inputs, needed, dimensions = length(probe.example), 1, []
    number = next(k for k, member in enumerate(family.members) if member.task not in family.depths)
    first = family.members[number]
    stages, depth = first.stages, len(first.stages)
    single = list(cuts_of(family, gather(probe.example, slice(0, 1)), device, depth, [number]))
    several = cuts_of(family, probe.example, device, depth, [number])
    for d, (cuts, of_one) in enumerate(zip(several, single, strict=True)):
        after = stages[d + 1] if d + 1 < depth else first.network.head
        dimensions.append(feature_dimensions(cuts[number], of_one[number], stages[d], after))
        needed = max(needed, inputs_needed(cuts[number], inputs, dimensions[-1]))
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
    wanted: Collection[Key],
    device: torch.device,
    advance: Advance,
) -> Candidates:
    """Fit the stitches of ordered pairs of networks, by every method.

    Under `torch.distributed` each process runs its share of the batches, and all return the same stitches.

    Args:
        family: the networks.
        probe: the inputs.
        fitted: numbers of the inputs to fit on.
        dimensions: for each location the dimensions of the channels of its tensors.
        wanted: the pairs at their locations.
        device: where the networks are.
        advance: called after each batch.

    Returns:
        the stitches; none where the features of two networks are equal.
    """
    everyone = sorted({number for _, i, j in wanted for number in (i, j)})
    depths = [family.depths.get(task, len(dimensions)) for task in family.tasks]
    candidates: Candidates = {}
    for locations in _passes(family, probe, dimensions, wanted, device):
        pairs = {d: [(i, j) for at, i, j in wanted if at == d] for d in locations}
        members = {d: [number for number in everyone if d < depths[number]] for d in locations}
        sources = {d: [(members[d].index(i), members[d].index(j)) for i, j in found] for d, found in pairs.items()}
        sums = _moments(family, probe, fitted, dimensions, members, sources, device, advance)
        for d, moments in sums.items():
            for (i, j), (source, target) in zip(pairs[d], sources[d], strict=True):
                stitches = moments.stitches(source, target, family.tasks[i], family.tasks[j], _dtype(family))
                candidates[d, i, j] = [stitch.to(device) for stitch in stitches]
    return candidates


def _moments(
    family: Family,
    probe: Probe,
    fitted: Sequence[int],
    dimensions: Sequence[dict[int, int]],
    members: Mapping[int, Sequence[int]],
    pairs: Mapping[int, list[tuple[int, int]]],
    device: torch.device,
    advance: Advance,
) -> dict[int, LocationMoments]:
    """The moments at some locations, from one reading of the inputs; pairs are of places in its `members`."""
    rank, size = world()
    everyone = {number for those in members.values() for number in those}

    def read() -> dict[int, LocationMoments]:
        sums = {d: LocationMoments(dimensions[d], found, len(fitted), seed=d) for d, found in pairs.items()}
        for number, batch in enumerate(chosen_inputs(probe.batches("stitching"), fitted)):
            if number % size == rank:
                for d, cuts in enumerate(cuts_of(family, batch, device, max(pairs) + 1, everyone)):
                    if d in sums:
                        sums[d].add([cuts[member] for member in members[d]], length(batch), number)
            advance()
        return sums

    first, *others = gathered(read)
    for other in others:
        for d, moments in first.items():
            moments.merge(other[d])
    return first


def _dtype(family: Family) -> torch.dtype:
    parameters = family.members[0].network.parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def _passes(
    family: Family, probe: Probe, dimensions: Sequence[dict[int, int]], wanted: Collection[Key], device: torch.device
) -> list[list[int]]:
    """Locations whose moments fit into memory together."""
    passes: list[list[int]] = [[]]
    held = 0
    members = {number for _, i, j in wanted for number in (i, j)}
    for d, cuts in enumerate(cuts_of(family, probe.example, device, len(dimensions), members)):
        if not any(at == d for at, _, _ in wanted):
            continue
        passing = [cuts[number] for number in sorted({k for at, i, j in wanted if at == d for k in (i, j)})]
        size = sum(_bytes(passing, index, dimension) for index, dimension in dimensions[d].items())
        if passes[-1] and held + size > MOMENT_BYTES:
            passes.append([])
            held = 0
        passes[-1].append(d)
        held += size
    return [locations for locations in passes if locations]


def _bytes(cuts: Sequence[Cut], index: int, dimension: int) -> int:
    channels: int = sum(cut[index].shape[dimension] for cut in cuts)
    return 8 * channels * channels
