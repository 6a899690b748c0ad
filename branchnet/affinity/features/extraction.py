"""The features of one network at its locations, read in one or more passes over the probe.

What counts at a location: the floating-point tensors of the cut that the stage newly produced and that have the probe
dimension first. Tensors that it propagates unchanged, masks, sizes and integers do not count.
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
from branchnet.affinity.features.memory_plan import Chunk, Passes
from branchnet.affinity.networks import Member
from branchnet.affinity.probes import Probe, on_device
from branchnet.data.call_forms import Inputs
from branchnet.data.collation import leaves, length
from branchnet.errors import AffinityError
from branchnet.stages import call

Transform: TypeAlias = Callable[[Tensor], Tensor]
Consumer: TypeAlias = Callable[[Chunk, Kept], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Which tensors of each cut count, and how many features they have.

    Attributes:
        chunks: one for each tensor that counts, in order of depth.
        dtype: what holds all features exactly.
        first: the features of the first input, (F,), by location and tensor.
    """

    chunks: tuple[Chunk, ...]
    dtype: torch.dtype
    first: Mapping[tuple[int, int], Tensor]


def find_layout(
    member: Member, example: Inputs, locations: Sequence[str], device: torch.device | None, transform: Transform | None
) -> Layout:
    """Run a few inputs to see which tensors count.

    Raises:
        AffinityError: a location without a tensor that counts.
    """
    chunks: list[Chunk] = []
    seen: list[tuple[Tensor, int, Tensor]] = []
    inputs = length(example)

    def look(location: int, after: tuple[Any, ...], fresh: Sequence[int]) -> None:
        # A stage without a tensor of its own (only a dropout in evaluation mode) counts what it propagates.
        usable = [index for index in range(len(after)) if _counts(after[index], inputs)]
        chosen = [index for index in usable if index in fresh] or usable
        if not chosen:
            raise AffinityError(
                f"{member.label} at {locations[location]!r}: no floating-point tensor with the inputs first is alive; "
                "expected one: cut elsewhere (locations=)"
            )
        for index in chosen:
            rows = _rows(after[index], transform)
            chunks.append(Chunk(location, index, rows.shape[1], 0, rows.shape[1], rows.dtype))
            seen.append((rows, version_of(rows), rows[0].clone()))

    with untouched(member.network, device) as place:
        _forward(member, on_device(example, place), len(locations), look)
    overwritten = [version_of(rows) != version for rows, version, _ in seen]
    return Layout(
        tuple(replace(chunk, overwritten=one) for chunk, one in zip(chunks, overwritten, strict=True)),
        reduce(torch.promote_types, (chunk.dtype for chunk in chunks)),
        {(chunk.location, chunk.tensor): first for chunk, (_, _, first) in zip(chunks, seen, strict=True)},
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
    share: range | None = None,
    barrier: Callable[[Callable[[], list[Kept]]], list[Kept]] | None = None,
) -> None:
    """Call `consume(chunk, features)` for every chunk of the passes.

    Args:
        member: the network.
        probe: the inputs.
        layout: which tensors count.
        passes: what to keep in each run over the probe.
        locations: their names, for messages.
        consume: takes a chunk and its features.
        device: where to run; by default where the network is.
        transform: applied to every tensor that counts.
        share: the batches to run the network on, all by default.
        barrier: runs what may fail in one process only.

    Raises:
        AffinityError: features whose shape changes between batches.
    """
    chosen = range(len(probe.sizes)) if share is None else share
    for chunks in passes:
        with untouched(member.network, device) as place:
            read = partial(_read_pass, member, probe, chosen, chunks, layout, locations, place, transform)
            kept = read() if barrier is None else barrier(read)
            for chunk in chunks:
                consume(chunk, kept.pop(0))


def read_batches(
    member: Member,
    probe: Probe,
    locations: Sequence[str],
    consume: Callable[[int, list[Tensor]], None],
    *,
    device: torch.device | None = None,
    transform: Transform | None = None,
    share: range | None = None,
) -> None:
    """Call `consume(location, tensors)` for every batch, each tensor that counts as (B, F); nothing is kept.

    Args:
        member: the network.
        probe: the inputs.
        locations: their names, for messages.
        consume: takes the number of a location and its tensors.
        device: where to run; by default where the network is.
        transform: applied to every tensor that counts.
        share: the batches to run the network on, all by default.
    """
    layout = find_layout(member, probe.example, locations, device, transform)

    def visit(location: int, after: tuple[Any, ...], _: Sequence[int]) -> None:
        chosen = [chunk.tensor for chunk in layout.chunks if chunk.location == location]
        consume(location, [_rows(after[index], transform) for index in chosen])

    with untouched(member.network, device) as place:
        for number, batch in enumerate(probe.batches(member.label)):
            if share is None or number in share:
                _forward(member, on_device(batch, place), len(locations), visit)


def _read_pass(
    member: Member,
    probe: Probe,
    share: range,
    chunks: Sequence[Chunk],
    layout: Layout,
    locations: Sequence[str],
    place: torch.device,
    transform: Transform | None,
) -> list[Kept]:
    references = [layout.first[chunk.location, chunk.tensor] for chunk in chunks]
    # A stage that writes in place only for some inputs shows afterwards: then all is read again, and copied.
    for copied in (False, True):
        keeper = Keeper(chunks, references, copied=copied)
        _fill(keeper, member, probe, share, chunks, locations, place, transform)
        if keeper.intact:
            break
        logger.info("%s writes to features after returning them: they are read again and copied", member.label)
    return keeper.take()


def _fill(
    keeper: Keeper,
    member: Member,
    probe: Probe,
    share: range,
    chunks: Sequence[Chunk],
    locations: Sequence[str],
    place: torch.device,
    transform: Transform | None,
) -> None:
    depth = max(chunk.location for chunk in chunks) + 1
    for number, batch in enumerate(probe.batches(member.label)):
        inputs = length(batch)

        def collect(
            location: int, after: tuple[Any, ...], _: Sequence[int], number: int = number, inputs: int = inputs
        ) -> None:
            for index, chunk in enumerate(chunks):
                if chunk.location == location:
                    rows = _rows(after[chunk.tensor], transform)
                    if len(rows) != inputs or rows.shape[1] != chunk.features:
                        raise AffinityError(
                            f"{member.label} at {locations[location]!r}: features of shape {tuple(rows.shape)} for "
                            f"{inputs} inputs; expected ({inputs}, {chunk.features}), as all probe inputs must have "
                            "the same shape"
                        )
                    keeper.keep(index, rows, number)

        if number in share:
            _forward(member, on_device(batch, place), depth, collect)


def _forward(member: Member, batch: Inputs, depth: int, visit: Callable[..., None]) -> None:
    """Run the first `depth` stages; after each, `visit(location, cut, fresh)` with the indices newly produced."""
    before: tuple[Any, ...] = tuple(leaves(batch))
    for location, stage in enumerate(member.stages[:depth]):
        earlier = {_identity(tensor) for tensor in before if isinstance(tensor, Tensor)}
        after = call(stage, batch) if location == 0 else stage(*before)
        after = after if isinstance(after, tuple) else (after,)
        fresh = [
            index
            for index, tensor in enumerate(after)
            if isinstance(tensor, Tensor) and _identity(tensor) not in earlier
        ]
        visit(location, after, fresh)
        before = after


def _identity(tensor: Tensor) -> tuple[int, int, int]:
    """Equal for a tensor that was propagated unchanged, different once it was written to."""
    return tensor.data_ptr(), tensor.numel(), version_of(tensor)


def _counts(tensor: Any, inputs: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) == inputs


def _rows(tensor: Tensor, transform: Transform | None) -> Tensor:
    rows = (tensor if transform is None else transform(tensor)).detach()
    return rows.flatten(1) if rows.dim() > 1 else rows[:, None]
