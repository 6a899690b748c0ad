"""Fitting stitches at one location: moments of several networks' features, and from them a stitch by every method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import AffinityError
from branchnet.stitching.channels import as_rows, channel_dimension, feature_indices
from branchnet.stitching.closed_form import METHODS, Fit, fit_maps
from branchnet.stitching.moments import MomentSums
from branchnet.stitching.stitch import AffineMap, Stitch, unstitched

POSITIONS = 8192
"""Positions of a map that are enough whatever the number of channels; more of them change nothing that can be seen."""
POSITIONS_PER_CHANNEL = 20
"""Positions needed for each channel that arrives."""
FEWEST_POSITIONS_PER_CHANNEL = 2
"""Below so many least squares meets most of what it is given, whatever the features are."""


def feature_dimensions(
    cut: Sequence[Any], of_one: Sequence[Any], before: nn.Module | None, after: nn.Module
) -> dict[int, int]:
    """Find the tensors of a cut that are features, and where their channels are.

    Args:
        cut: the values alive at a location, for several inputs.
        of_one: the same for one input.
        before: the stage that returns the cut; None where it is not known.
        after: the stage or head that takes them.

    Returns:
        for the number of each such tensor the dimension of its channels.
    """
    made = None if before is None else unstitched(before)
    return {
        index: channel_dimension(made, unstitched(after), index, cut[index]) for index in feature_indices(cut, of_one)
    }


def inputs_needed(cut: Sequence[Any], inputs: int, dimensions: Mapping[int, int]) -> int:
    """How many inputs give enough positions for every map of a location.

    Args:
        cut: the values alive there for some inputs.
        inputs: how many.
        dimensions: see `feature_dimensions`.

    Returns:
        a number of inputs.
    """
    needed = 1
    for index, dimension in dimensions.items():
        channels = cut[index].shape[dimension]
        per_input = cut[index].numel() // channels // inputs
        needed = max(needed, math.ceil(positions_wanted(channels) / max(1, per_input)))
    return needed


def positions_wanted(channels: int) -> int:
    """Positions to fit a map of so many channels on."""
    return max(POSITIONS, POSITIONS_PER_CHANNEL * channels)


class LocationMoments:
    """Moments of the features of M sources at one location, over positions drawn at random.

    Args:
        dimensions: see `feature_dimensions`.
        pairs: pairs (i, j) of sources; i may be mapped to j.
        inputs: how many inputs will be added in all.
        seed: of the positions.
    """

    def __init__(
        self, dimensions: Mapping[int, int], pairs: Sequence[tuple[int, int]], inputs: int, seed: int = 0
    ) -> None:
        self.dimensions = dict(dimensions)
        self.inputs = inputs
        self._pairs = sorted({(min(p), max(p)) for p in pairs} | {(i, i) for i, _ in pairs})
        self._sums = {index: MomentSums() for index in dimensions}
        self._equal = {(index, *pair): True for index in dimensions for pair in self._pairs}
        self._told = False
        self._seed = seed
        self._batches = 0

    def add(self, cuts: Sequence[Sequence[Any]], inputs: int, number: int | None = None) -> None:
        """Add a batch.

        Args:
            cuts: for each source the values alive at the location, for the same inputs.
            inputs: how many inputs these are.
            number: of the batch, which decides the positions that are drawn; by default they are counted.

        Raises:
            AffinityError: features that are not finite, or sources with different numbers of positions.
        """
        self._warn_of_others(cuts)
        for index, dimension in self.dimensions.items():
            rows = [as_rows(cut[index].detach(), dimension) for cut in cuts]
            if len({len(source) for source in rows}) > 1:
                raise AffinityError(
                    f"features have {[tuple(cut[index].shape) for cut in cuts]}; expected the same positions"
                )
            chosen = self._drawn(rows[0], inputs, self._batches if number is None else number)
            picked = [source if chosen is None else source[chosen.to(source.device)] for source in rows]
            if not all(bool(source.isfinite().all()) for source in picked):
                raise AffinityError("features hold NaN or infinity; expected finite numbers")
            self._sums[index].add(picked, self._pairs)
            for i, j in self._pairs:
                key = (index, i, j)
                self._equal[key] = self._equal[key] and (i == j or torch.equal(picked[i], picked[j]))
        self._batches += 1

    def merge(self, other: LocationMoments) -> None:
        """Add what was accumulated elsewhere from other batches of the same inputs.

        Args:
            other: moments of the same sources and pairs.
        """
        for index, sums in self._sums.items():
            sums.merge(other._sums[index])
        self._equal = {key: equal and other._equal[key] for key, equal in self._equal.items()}

    def _warn_of_others(self, cuts: Sequence[Sequence[Any]]) -> None:
        """Say which tensors differ between the sources and are no features of the inputs, so that nothing maps them."""
        for index, value in enumerate(cuts[0]):
            if index in self.dimensions or not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            others = [cut[index] for cut in cuts[1:]]
            if self._told or all(other.shape == value.shape and torch.equal(other, value) for other in others):
                continue
            self._told = True
            warnings.warn(
                f"tensor {index} of a cut, of shape {tuple(value.shape)}, differs between the networks and holds no "
                "features of the inputs: no stitch maps it, and outputs behind it will be off; expected another "
                "location to cut at",
                stacklevel=2,
            )

    def _drawn(self, rows: Tensor, inputs: int, number: int) -> Tensor | None:
        wanted = math.ceil(positions_wanted(rows.shape[1]) * inputs / self.inputs)
        if wanted >= len(rows):
            return None
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        return torch.randperm(len(rows), generator=generator)[:wanted]

    def stitches(self, i: int, j: int, source: str, target: str, dtype: torch.dtype) -> list[Stitch]:
        """Fit the stitch from source i to source j by every method.

        Args:
            i, j: numbers of the sources.
            source, target: the tasks that they belong to.
            dtype: of the maps.

        Returns:
            a stitch for each of `METHODS`; none where all features are equal.
        """
        differing = [index for index in self.dimensions if not self._equal[index, min(i, j), max(i, j)]]
        if not differing:
            return []
        self._warn_of_weak_fits(i, differing, source, target)
        fits = {index: list(fit_maps(self._sums[index].moments(i, j))) for index in differing}
        return [
            self._stitch({index: found[number] for index, found in fits.items()}, source, target, dtype)
            for number in range(len(METHODS))
        ]

    def _warn_of_weak_fits(self, i: int, indices: Sequence[int], source: str, target: str) -> None:
        """Say where the features that arrive are constant, or positions too few to tell them from chance."""
        for index in indices:
            moments = self._sums[index].moments(i, i)
            channels = len(moments.cov_x)
            if not bool(moments.cov_x.diagonal().any()):
                what = "are constant over the probe, so that nothing can be learnt from them"
            elif moments.count < FEWEST_POSITIONS_PER_CHANNEL * channels:
                what = f"have {channels} channels and the probe gives {moments.count} positions"
            else:
                continue
            warnings.warn(
                f"the features of {source!r} that are stitched to {target!r} {what}; expected different inputs and "
                f"{POSITIONS_PER_CHANNEL} positions for each channel: the stitch fits the probe and not the networks",
                stacklevel=2,
            )

    def _stitch(self, fits: Mapping[int, Fit], source: str, target: str, dtype: torch.dtype) -> Stitch:
        maps = {}
        for index, fit in fits.items():
            rank = None if fit.factors is None else fit.factors[0].shape[1]
            maps[index] = AffineMap(fit.weight.shape[0], fit.weight.shape[1], self.dimensions[index], rank).to(dtype)
            maps[index].load(fit)
        first = next(iter(fits.values()))
        r2 = sum(fit.r2 for fit in fits.values()) / len(fits)
        return Stitch(source, target, maps, method=first.method, r2=r2)
