"""The features of one network at its locations, read in one or more passes over the probe.

What counts at a location: the floating-point tensors of the cut that the stage newly produced and that have the probe
dimension first. Tensors handed through, masks, sizes and integers do not count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from branchnet.affinity.features.feature_buffer import Keeper, Kept, version_of
from branchnet.affinity.features.isolation import untouched
from branchnet.affinity.features.memory_plan import Passes, Piece
from branchnet.affinity.networks import Member
from branchnet.affinity.probes import Probe, on_device
from branchnet.data.call_forms import Inputs
from branchnet.data.collation import leaves, length
from branchnet.errors import AffinityError
from branchnet.stages import call

Transform: TypeAlias = Callable[[Tensor], Tensor]
Consumer: TypeAlias = Callable[[Piece, Kept], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Which tensors of each cut count, and how many features they have.

    Attributes:
        pieces: one for each tensor that counts, in order of depth.
        dtype: what holds all features exactly.
        first: the features of the first input, (F,), by location and tensor.
    """

    pieces: tuple[Piece, ...]
    dtype: torch.dtype
    first: Mapping[tuple[int, int], Tensor]


def find_layout(
    member: Member, example: Inputs, locations: Sequence[str], device: torch.device | None, transform: Transform | None
) -> Layout:
    """Run a few inputs to see which tensors count.

    Raises:
        AffinityError: a location without a tensor that counts.
    """
    pieces: list[Piece] = []
    seen: list[tuple[Tensor, int, Tensor]] = []
    inputs = length(example)

    def look(location: int, after: tuple[Any, ...], fresh: Sequence[int]) -> None:
        usable = [index for index in range(len(after)) if _counts(after[index], inputs)]
        chosen = [index for index in usable if index in fresh] or usable
        if not chosen:
            raise AffinityError(
                f"{member.label} at {locations[location]!r}: no floating-point tensor with the inputs first is alive"
            )
        for index in chosen:
            rows = _rows(after[index], transform)
            pieces.append(Piece(location, index, rows.shape[1], 0, rows.shape[1], rows.dtype))
            seen.append((rows, version_of(rows), rows[0].clone()))

    with untouched(member.network, device) as place:
        _forward(member, on_device(example, place), len(locations), look)
    overwritten = [version_of(rows) != version for rows, version, _ in seen]
    return Layout(
        tuple(replace(piece, overwritten=one) for piece, one in zip(pieces, overwritten, strict=True)),
        reduce(torch.promote_types, (piece.dtype for piece in pieces)),
        {(piece.location, piece.tensor): first for piece, (_, _, first) in zip(pieces, seen, strict=True)},
    )


def read_features(
    member: Member,
    probe: Probe,
    layout: Layout,
    passes: Passes,
    locations: Sequence[str],
    consume: Consumer,
    *,
    device: torch.device | None = None,
    transform: Transform | None = None,
    part: range | None = None,
    fence: Callable[[Callable[[], list[Kept]]], list[Kept]] | None = None,
) -> None:
    """Call `consume(piece, features)` for every piece of the passes.

    part: the batches to run the network on, all by default. fence: runs what may fail in one process only.
    """
    chosen = range(len(probe.sizes)) if part is None else part
    for pieces in passes:
        with untouched(member.network, device) as place:
            read = partial(_read_pass, member, probe, chosen, pieces, layout, locations, place, transform)
            kept = read() if fence is None else fence(read)
            for piece in pieces:
                consume(piece, kept.pop(0))


def read_batches(
    member: Member,
    probe: Probe,
    locations: Sequence[str],
    consume: Callable[[int, list[Tensor]], None],
    *,
    device: torch.device | None = None,
    transform: Transform | None = None,
    part: range | None = None,
) -> None:
    """Call `consume(location, tensors)` for every batch, each tensor that counts as (B, F); nothing is kept.

    part: the batches to run the network on, all by default.
    """
    layout = find_layout(member, probe.example, locations, device, transform)

    def visit(location: int, after: tuple[Any, ...], _: Sequence[int]) -> None:
        chosen = [piece.tensor for piece in layout.pieces if piece.location == location]
        consume(location, [_rows(after[index], transform) for index in chosen])

    with untouched(member.network, device) as place:
        for number, batch in enumerate(probe.batches(member.label)):
            if part is None or number in part:
                _forward(member, on_device(batch, place), len(locations), visit)


def _read_pass(
    member: Member,
    probe: Probe,
    part: range,
    pieces: Sequence[Piece],
    layout: Layout,
    locations: Sequence[str],
    place: torch.device,
    transform: Transform | None,
) -> list[Kept]:
    references = [layout.first[piece.location, piece.tensor] for piece in pieces]
    for copied in (False, True):
        keeper = Keeper(pieces, references, copied=copied)
        _fill(keeper, member, probe, part, pieces, locations, place, transform)
        if keeper.intact:
            break
        logger.info("%s writes to features after handing them out: they are read again and copied", member.label)
    return keeper.take()


def _fill(
    keeper: Keeper,
    member: Member,
    probe: Probe,
    part: range,
    pieces: Sequence[Piece],
    locations: Sequence[str],
    place: torch.device,
    transform: Transform | None,
) -> None:
    depth = max(piece.location for piece in pieces) + 1
    for number, batch in enumerate(probe.batches(member.label)):
        inputs = length(batch)

        def collect(
            location: int, after: tuple[Any, ...], _: Sequence[int], number: int = number, inputs: int = inputs
        ) -> None:
            for index, piece in enumerate(pieces):
                if piece.location == location:
                    rows = _rows(after[piece.tensor], transform)
                    if len(rows) != inputs or rows.shape[1] != piece.features:
                        raise AffinityError(
                            f"{member.label} at {locations[location]!r}: features of shape {tuple(rows.shape)} for "
                            f"{inputs} inputs; all probe inputs must have the same shape"
                        )
                    keeper.keep(index, rows, number)

        if number in part:
            _forward(member, on_device(batch, place), depth, collect)


def _forward(member: Member, batch: Inputs, depth: int, visit: Callable[..., None]) -> None:
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
    return tensor.data_ptr(), tensor.numel(), version_of(tensor)


def _counts(tensor: Any, inputs: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) == inputs


def _rows(tensor: Tensor, transform: Transform | None) -> Tensor:
    rows = (tensor if transform is None else transform(tensor)).detach()
    return rows.flatten(1) if rows.dim() > 1 else rows[:, None]
