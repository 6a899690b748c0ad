"""Spaces of interchangeable units, and which positions of a tensor's axes carry them (see `symmetries`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitIndex:
    """Positions of an axis that carry the units of a space: `index` (copies, n), unit u at each of `index[:, u]`.

    There are several copies where an axis repeats its units, as after `repeat_interleave` or flattening of pixels.
    """

    space: int
    index: Tensor


Axes = Mapping[int, tuple[UnitIndex, ...]]
"""For each axis of a tensor that carries units, where it carries which."""

Known = dict[int, dict[int, tuple[UnitIndex, ...]]]
"""The axes of parameters and buffers by identity."""


def permuted(tensor: Tensor, axes: Axes, permutations: Mapping[int, Tensor]) -> Tensor:
    """Return the tensor with unit u of every space replaced by its unit `permutations[space][u]`; other spaces stay."""
    for axis, carriers in axes.items():
        order = torch.arange(tensor.shape[axis], device=tensor.device)
        for carrier in carriers:
            if carrier.space in permutations:
                index = carrier.index.to(tensor.device)
                order[index] = index[:, permutations[carrier.space].to(tensor.device)]
        tensor = tensor.index_select(axis, order)
    return tensor


def unit_indices(axes: Axes) -> Iterator[UnitIndex]:
    """Yield the unit indices of all axes."""
    for carriers in axes.values():
        yield from carriers


class Spaces:
    """Spaces that may turn out to be one (a residual sum), or not to be permutable.

    A union-find structure: `join` makes one number the root of another, and `root` follows them.

    Attributes:
        sizes: the number of units of each space.
        origins: the originating stage of each space, where its units are computed; right for roots.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.origins: list[int] = []
        self._parents: list[int] = []
        self._fixed: set[int] = set()

    def new(self, size: int, stage: int) -> int:
        """Found a space of `size` units that originate in `stage`; return its number."""
        self.sizes.append(size)
        self.origins.append(stage)
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def root(self, space: int) -> int:
        """Return the number under which a space is known now."""
        while self._parents[space] != space:
            space = self._parents[space]
        return space

    def join(self, first: int, second: int) -> None:
        """Record that two spaces are one: it originates in the earlier of the two stages."""
        first, second = self.root(first), self.root(second)
        self._parents[second] = first
        self.origins[first] = min(self.origins[first], self.origins[second])
        if second in self._fixed:
            self._fixed.add(first)

    def fix(self, space: int) -> None:
        """Record that a space cannot be permuted."""
        self._fixed.add(self.root(space))

    def fixed(self, space: int) -> bool:
        """Return whether a space cannot be permuted."""
        return self.root(space) in self._fixed

    def roots(self) -> list[int]:
        """Return one number for each space."""
        return [space for space in range(len(self.sizes)) if self.root(space) == space]
