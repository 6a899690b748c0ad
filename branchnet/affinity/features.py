"""The features of one network at its locations, read in one or more passes over the probe.

What counts at a location: the floating-point tensors of the cut that the stage newly produced and that have the probe
dimension first. Tensors handed through, masks, sizes and integers do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from branchnet.errors import AffinityError
from branchnet.stages import call

from .guards import untouched
from .memory import Piece, Plan
from .networks import Member
from .probes import Batch, Probe, batch_length, leaves, on_device

Transform: TypeAlias = Callable[[Tensor], Tensor]
Consumer: TypeAlias = Callable[[Piece, Tensor], None]


@dataclass(frozen=True)
class Layout:
    """Which tensors of each cut count, and how many features they have.

    Attributes:
        pieces: one for each tensor that counts, in order of depth.
        dtype: what holds all features exactly.
    """

    pieces: tuple[Piece, ...]
    dtype: torch.dtype


def find_layout(
    member: Member, example: Batch, locations: Sequence[str], device: torch.device | None, transform: Transform | None
) -> Layout:
    """Run a few inputs to see which tensors count.

    Raises:
        AffinityError: a location without a tensor that counts.
    """
    pieces: list[Piece] = []
    dtypes: list[torch.dtype] = []
    inputs = batch_length(example)

    def look(location: int, after: tuple[Any, ...], fresh: Sequence[int]) -> None:
        usable = [index for index in range(len(after)) if _counts(after[index], inputs)]
        chosen = [index for index in usable if index in fresh] or usable
        if not chosen:
            raise AffinityError(
                f"{member.label} at {locations[location]!r}: no floating-point tensor with the inputs first is alive"
            )
        for index in chosen:
            rows = _rows(after[index], transform)
            pieces.append(Piece(location, index, rows.shape[1], 0, rows.shape[1]))
            dtypes.append(rows.dtype)

    with untouched(member.network, device) as place:
        _forward(member, on_device(example, place), len(locations), look)
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return Layout(tuple(pieces), dtype)


@dataclass
class Arena:
    """Memory for the features of one pass, used again for the next one."""

    numbers: Tensor = field(default_factory=lambda: torch.empty(0))

    def take(self, pieces: Sequence[Piece], inputs: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """One uninitialised tensor (inputs, width) for every piece."""
        widths = [piece.width * inputs for piece in pieces]
        if self.numbers.dtype != dtype or self.numbers.device != device or len(self.numbers) < sum(widths):
            self.numbers = torch.empty(0)
            self.numbers = torch.empty(sum(widths), dtype=dtype, device=device)
        parts = self.numbers[: sum(widths)].split(widths)
        return [part.view(inputs, piece.width) for part, piece in zip(parts, pieces, strict=True)]


def read_features(
    member: Member,
    probe: Probe,
    plan: Plan,
    locations: Sequence[str],
    consume: Consumer,
    *,
    arena: Arena,
    device: torch.device | None = None,
    transform: Transform | None = None,
    part: range | None = None,
    fence: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Call `consume(piece, features)` for every piece of the plan, features (K, width) being valid during the call.

    part: the batches to run the network on, all by default. fence: runs what may fail in one process only.
    """
    chosen = range(len(probe.sizes)) if part is None else part
    inputs = sum(probe.sizes[index] for index in chosen)
    for pieces in plan.passes:
        with untouched(member.network, device) as place:
            kept = arena.take(pieces, inputs, plan.dtype, place)
            fill = partial(_fill, member, probe, chosen, pieces, kept, locations, place, transform)
            fill() if fence is None else fence(fill)
            for piece, features in zip(pieces, kept, strict=True):
                consume(piece, features)


def read_batches(
    member: Member,
    probe: Probe,
    locations: Sequence[str],
    consume: Callable[[int, list[Tensor]], None],
    *,
    device: torch.device | None = None,
    transform: Transform | None = None,
) -> None:
    """Call `consume(location, tensors)` for every batch, each tensor that counts as (B, F); nothing is kept."""
    layout = find_layout(member, probe.example, locations, device, transform)

    def visit(location: int, after: tuple[Any, ...], _: Sequence[int]) -> None:
        chosen = [piece.tensor for piece in layout.pieces if piece.location == location]
        consume(location, [_rows(after[index], transform) for index in chosen])

    with untouched(member.network, device) as place:
        for batch in probe.batches(member.label):
            _forward(member, on_device(batch, place), len(locations), visit)


def _fill(
    member: Member,
    probe: Probe,
    part: range,
    pieces: Sequence[Piece],
    kept: Sequence[Tensor],
    locations: Sequence[str],
    place: torch.device,
    transform: Transform | None,
) -> None:
    def keep(start: int, piece: Piece, target: Tensor, tensor: Any, inputs: int) -> None:
        rows = _rows(tensor, transform)
        if len(rows) != inputs or rows.shape[1] != piece.features:
            raise AffinityError(
                f"{member.label} at {locations[piece.location]!r}: features of shape {tuple(tensor.shape)} for "
                f"{inputs} inputs; all probe inputs must have the same shape"
            )
        target[start : start + inputs].copy_(rows[:, piece.start : piece.stop])

    depth = max(piece.location for piece in pieces) + 1
    start = 0
    for number, batch in enumerate(probe.batches(member.label)):
        inputs = batch_length(batch)

        def collect(
            location: int, after: tuple[Any, ...], _: Sequence[int], start: int = start, inputs: int = inputs
        ) -> None:
            for piece, target in zip(pieces, kept, strict=True):
                if piece.location == location:
                    keep(start, piece, target, after[piece.tensor], inputs)

        if number in part:
            _forward(member, on_device(batch, place), depth, collect)
            start += inputs


def _forward(member: Member, batch: Batch, depth: int, visit: Callable[..., None]) -> None:
    """Run the first `depth` stages; after each, `visit(location, cut, fresh)` with the indices newly produced."""
    before: tuple[Any, ...] = tuple(leaves(batch))
    for location, stage in enumerate(member.stages[:depth]):
        handed = {_identity(tensor) for tensor in before if isinstance(tensor, Tensor)}
        after = call(stage, batch) if location == 0 else stage(*before)
        after = after if isinstance(after, tuple) else (after,)
        fresh = [
            index
            for index, tensor in enumerate(after)
            if isinstance(tensor, Tensor) and _identity(tensor) not in handed
        ]
        visit(location, after, fresh)
        before = after


def _identity(tensor: Tensor) -> tuple[int, int, int]:
    """Equal for a tensor that was handed through, different once it was written to."""
    return tensor.data_ptr(), tensor.numel(), tensor._version


def _counts(tensor: Any, inputs: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) == inputs


def _rows(tensor: Tensor, transform: Transform | None) -> Tensor:
    rows = (tensor if transform is None else transform(tensor)).detach()
    return rows.flatten(1) if rows.dim() > 1 else rows[:, None]
