"""Fitting stitches at one location: moments of several networks' features, and from them a stitch by every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import AffinityError
from branchnet.stages import Stage
from branchnet.stitching.channels import as_rows, channel_dimension, mapped_indices
from branchnet.stitching.closed_form import METHODS, Fit, fit_maps
from branchnet.stitching.moments import MomentSums
from branchnet.stitching.stitch import AffineMap, Stitch, unstitched

POSITIONS = 8192
"""Positions of a map that are enough whatever the number of channels; more of them change nothing that can be seen."""
POSITIONS_PER_CHANNEL = 20
"""Positions needed for each channel that arrives."""


def feature_dimensions(cut: Sequence[Any], inputs: int, after: nn.Module) -> dict[int, int]:
    """Find the tensors of a cut that are features, and where their channels are.

    Args:
        cut: the values alive at a location.
        inputs: how many inputs they were computed from.
        after: the stage or head that takes them.

    Returns:
        for the number of each such tensor the dimension of its channels.
    """
    stage = unstitched(after)
    dimensions = {}
    for index in mapped_indices(cut, inputs):
        tensor = cut[index]
        if isinstance(stage, Stage):
            dimensions[index] = channel_dimension(stage.graph, stage, index, tensor)
        else:
            dimensions[index] = 1 if tensor.dim() > 3 else tensor.dim() - 1
    return dimensions


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
        pairs: pairs (i, j) of sources; i may be mapped to j. Moments of the sources themselves are kept, too.
        inputs: how many inputs will be added in all.
        seed: of the positions.
    """

    def __init__(
        self, dimensions: Mapping[int, int], pairs: Sequence[tuple[int, int]], inputs: int, seed: int = 0
    ) -> None:
        self.dimensions = dict(dimensions)
        self.inputs = inputs
        self._pairs = sorted({(min(p), max(p)) for p in pairs} | {(k, k) for pair in pairs for k in pair})
        self._sums = {index: MomentSums() for index in dimensions}
        self._equal = {(index, *pair): True for index in dimensions for pair in self._pairs}
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, cuts: Sequence[Sequence[Any]], inputs: int) -> None:
        """Add a batch.

        Args:
            cuts: for each source the values alive at the location, for the same inputs.
            inputs: how many inputs these are.

        Raises:
            AffinityError: features that are not finite, or sources with different numbers of positions.
        """
        for index, dimension in self.dimensions.items():
            rows = [as_rows(cut[index].detach(), dimension) for cut in cuts]
            if len({len(source) for source in rows}) > 1:
                raise AffinityError(
                    f"features have {[tuple(cut[index].shape) for cut in cuts]}; expected the same positions"
                )
            chosen = self._drawn(rows[0], inputs)
            picked = [source if chosen is None else source[chosen.to(source.device)] for source in rows]
            if not all(bool(source.isfinite().all()) for source in picked):
                raise AffinityError("features hold NaN or infinity; expected finite numbers")
            self._sums[index].add(picked, self._pairs)
            for i, j in self._pairs:
                key = (index, i, j)
                self._equal[key] = self._equal[key] and torch.equal(picked[i], picked[j])

    def _drawn(self, rows: Tensor, inputs: int) -> Tensor | None:
        wanted = math.ceil(positions_wanted(rows.shape[1]) * inputs / self.inputs)
        if wanted >= len(rows):
            return None
        return torch.randperm(len(rows), generator=self._generator)[:wanted]

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
        fits = {index: list(fit_maps(self._sums[index].moments(i, j))) for index in differing}
        return [
            self._stitch({index: found[number] for index, found in fits.items()}, source, target, dtype)
            for number in range(len(METHODS))
        ]

    def _stitch(self, fits: Mapping[int, Fit], source: str, target: str, dtype: torch.dtype) -> Stitch:
        maps = {}
        for index, fit in fits.items():
            rank = None if fit.factors is None else fit.factors[0].shape[1]
            maps[index] = AffineMap(fit.weight.shape[0], fit.weight.shape[1], self.dimensions[index], rank).to(dtype)
            maps[index].load(fit)
        first = next(iter(fits.values()))
        r2 = sum(fit.r2 for fit in fits.values()) / len(fits)
        return Stitch(source, target, maps, method=first.method, r2=r2)
