"""The stitching layer as a module, and a node of a network that has one in front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchnet.stitching.closed_form import Fit

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class AffineMap(nn.Module):
    """An affine map of the channels of a tensor, the same at every position.

    Args:
        sources: C, channels that arrive.
        targets: C', channels that are expected.
        dimension: the dimension that holds the channels.
        rank: of the map; None for a full one. One of rank r holds r (C + C') + C' numbers, a full one C C' + C'.

    Attributes:
        weights: (C', C); of low rank (r, C) and (C', r), one after the other.
        bias: (C',).
    """

    dimension: int
    rank: int

    def __init__(self, sources: int, targets: int, dimension: int, rank: int | None = None) -> None:
        super().__init__()
        shapes = [(targets, sources)] if rank is None else [(rank, sources), (targets, rank)]
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
        self.bias = nn.Parameter(torch.zeros(targets))
        self.dimension = dimension
        self.rank = min(sources, targets) if rank is None else rank

    @property
    def channels(self) -> tuple[int, int]:
        """C and C'."""
        return self.weights[0].shape[1], self.weights[-1].shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """Map features.

        Args:
            features: (..., C, ...), with the channels in `dimension`.

        Returns:
            the same shape, with C' channels.
        """
        *inner, outer = self.weights
        for weight in inner:
            features = self._mapped(features, weight, None)
        return self._mapped(features, outer, self.bias)

    def _mapped(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.dimension == features.dim() - 1:
            return F.linear(features, weight, bias)
        convolve = _CONVOLUTIONS[features.dim()]
        result: Tensor = convolve(features, weight.reshape(*weight.shape, *[1] * (features.dim() - 2)), bias)
        return result

    def load(self, fit: Fit) -> None:
        """Take the numbers of a fit.

        Args:
            fit: a map between as many channels, of the same rank.
        """
        factors = (fit.weight,) if fit.factors is None else fit.factors
        with torch.no_grad():
            for own, given in zip(self.weights, factors, strict=True):
                own.copy_(given.T)
            self.bias.copy_(fit.bias)

    def extra_repr(self) -> str:
        """What `print` shows: channels, dimension and rank.

        Returns:
            a short text.
        """
        sources, targets = self.channels
        return f"{sources} -> {targets}, dimension={self.dimension}, rank={self.rank}"


class Stitch(nn.Module):
    """Affine maps between the features of two networks at one location ("Understanding image representations by
    measuring their equivariance and equivalence", Lenc & Vedaldi 2015, section 4).

    Called with the tensors of a cut, it returns them with those mapped that `maps` names; all others are unchanged.

    Args:
        source: the task whose network's features arrive.
        target: the task whose network's features the module after it expects.
        maps: for each number of a tensor in the cut its map.
        method: how the maps were fitted: `ridge`, `half-way` or `variance-matched`; several where they differ.
        r2: share of the expected features' variance that least squares explains, the mean over the maps; where `build`
            fitted them, on inputs of the probe that they were not fitted on.

    Attributes:
        source, target, method, r2: as given.
        folded: whether the maps have been taken into the weights of the module after it, so that none is left here.

    >>> stitch = branchnet.stitching.Stitch("depth", "edges", {0: branchnet.stitching.AffineMap(4, 4, dimension=1)})
    >>> stitch.rank, stitch.size, stitch.folded
    (4, 20, False)
    >>> stitch(torch.zeros(2, 4, 8, 8), torch.tensor(3))[1]
    tensor(3)
    """

    def __init__(
        self,
        source: str,
        target: str,
        maps: Mapping[int, AffineMap],
        *,
        method: str = "",
        r2: float = float("nan"),
    ) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.method = method
        self.r2 = r2
        self.folded = False
        self.maps = nn.ModuleDict({str(index): maps[index] for index in sorted(maps)})

    @property
    def affine_maps(self) -> dict[int, AffineMap]:
        """The maps by the number of their tensor."""
        return {int(index): cast(AffineMap, affine) for index, affine in self.maps.items()}

    @property
    def rank(self) -> int:
        """The largest rank of the maps; 0 where there is none."""
        return max((affine.rank for affine in self.affine_maps.values()), default=0)

    @property
    def size(self) -> int:
        """Parameters of the stitch."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, *cut: Any) -> tuple[Any, ...]:
        """Map the tensors of a cut.

        Args:
            *cut: what the module before it returned.

        Returns:
            what the module after it takes.
        """
        mapped = list(cut)
        for index, affine in self.affine_maps.items():
            mapped[index] = affine(mapped[index])
        return tuple(mapped)

    def extra_repr(self) -> str:
        """What `print` shows: whose features arrive, and whose are expected.

        Returns:
            a short text.
        """
        return f"{self.source} -> {self.target}" + (", folded" if self.folded else "")


class StitchedStage(nn.Module):
    """A stage or head that is fed by another network's features, through a stitch.

    Args:
        stitch: the stitch.
        stage: what it feeds.
    """

    def __init__(self, stitch: Stitch, stage: nn.Module) -> None:
        super().__init__()
        self.stitch = stitch
        self.stage = stage

    def forward(self, *cut: Any) -> Any:
        """Map the cut and run the stage on it.

        Args:
            *cut: the tensors of the cut before the stitch.

        Returns:
            what the stage returns.
        """
        return self.stage(*self.stitch(*cut))


def unstitched(module: nn.Module) -> nn.Module:
    """Return the stage or head inside a `StitchedStage`; any other module as it is.

    Args:
        module: the module of a node or head.

    Returns:
        the module without its stitch.
    """
    return module.stage if isinstance(module, StitchedStage) else module
