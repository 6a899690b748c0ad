"""The stitches from the features at one place to those that other donors expect there: fitted, judged, chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from branchnet.builder.stitches.probe_features import Batch, Cut, OwnFeatures, run
from branchnet.errors import AffinityError, BuildError
from branchnet.stitching.channels import copied
from branchnet.stitching.fitting import LocationMoments
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.stitch import Stitch


def fit_stitches(
    own: OwnFeatures,
    arriving: Callable[[Batch], Cut],
    source: str,
    targets: Sequence[str],
    stage: int,
    kinds: Mapping[str, OutputKind],
) -> list[Stitch | None]:
    """Fit a stitch to each target by every method, and take the one with which its own rest does best.

    Args:
        own: what the donors make of the probe.
        arriving: gives the features that arrive, which are not written into.
        source: whose features they are.
        targets: whose features are expected.
        stage: the number of the stage before which they arrive; of heads that of all stages.
        kinds: how the outputs of some tasks are compared; `regression` for the others.

    Returns:
        for each target its stitch; None where the features are its own.

    Raises:
        BuildError: features that cannot be mapped, or outputs that are not finite, whatever the stitch.
    """
    candidates = _candidates(own, arriving, source, targets, stage)
    distances = [
        [OutputDistance(kinds.get(target, "regression")) for _ in found]
        for target, found in zip(targets, candidates, strict=True)
    ]
    unexplained = [OutputDistance() for _ in targets]
    for batch in own.batches("judged"):
        for target, found, judged, missing in zip(targets, candidates, distances, unexplained, strict=True):
            for stitch, distance in zip(found, judged, strict=True):
                mapped = stitch(*copied(arriving(batch)))
                if stitch is found[0]:  # by least squares
                    wanted = own.cut(batch, target, stage)
                    missing.add(*(_mapped_tensors(stitch, cut) for cut in (mapped, wanted)))
                wanted_output = own.own_output(batch, target, distance.kind)
                distance.add(run(own.rest(target, stage), mapped), wanted_output)
    best = [
        _best(source, target, found, judged)
        for target, found, judged in zip(targets, candidates, distances, strict=True)
    ]
    for chosen, missing in zip(best, unexplained, strict=True):
        if chosen is not None:
            chosen.r2 = 1 - missing.value()
    return best


def _candidates(
    own: OwnFeatures, arriving: Callable[[Batch], Cut], source: str, targets: Sequence[str], stage: int
) -> list[list[Stitch]]:
    """For each target a stitch by every method; none where the features are its own."""
    groups: dict[str, list[str]] = {}
    for target in targets:
        groups.setdefault(str(own.dimensions(target, stage)), []).append(target)
    inputs = len(own.division.fitted)
    moments = [
        LocationMoments(own.dimensions(group[0], stage), [(0, 1 + k) for k in range(len(group))], inputs)
        for group in groups.values()
    ]
    for batch in own.batches("fitted"):
        for sums, group in zip(moments, groups.values(), strict=True):
            _add(sums, [arriving(batch), *(own.cut(batch, target, stage) for target in group)], len(batch))
    network = own.networks[targets[0]]
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    found = {
        target: [stitch.to(own.device) for stitch in sums.stitches(0, 1 + k, source, target, dtype)]
        for sums, group in zip(moments, groups.values(), strict=True)
        for k, target in enumerate(group)
    }
    return [found[target] for target in targets]


def _add(sums: LocationMoments, cuts: list[Cut], inputs: int) -> None:
    try:
        sums.add(cuts, inputs)
    except AffinityError as error:
        raise BuildError(str(error)) from error


def _mapped_tensors(stitch: Stitch, cut: Cut) -> list[Tensor]:
    """What a stitch maps of a cut, each tensor as (B, channels, positions)."""
    tensors = {index: cut[index].movedim(affine.dimension, 1) for index, affine in stitch.affine_maps.items()}
    return [tensor.reshape(*tensor.shape[:2], -1) for tensor in tensors.values()]


def _best(source: str, target: str, found: Sequence[Stitch], judged: Sequence[OutputDistance]) -> Stitch | None:
    if not found:
        return None
    values = [distance.value() for distance in judged]
    if min(values) == math.inf:
        raise BuildError(
            f"{target}'s network gives NaN or infinity on the stitched features of {source}'s; expected finite "
            "outputs: branch elsewhere, or take init='donor' and train"
        )
    return found[values.index(min(values))]
