"""What is kept of a network at a location: one (K, K) matrix over the probe inputs, an RDM or inner products."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchnet.affinity.features.distributed import (
    barrier,
    broadcast,
    check_same_probe,
    columns_of_all,
    reading_rank,
    share_of,
    smallest,
    world,
)
from branchnet.affinity.features.extraction import Consumer, Layout, find_layout, read_features
from branchnet.affinity.features.feature_buffer import Kept
from branchnet.affinity.features.feature_cache import Cache, open_cache
from branchnet.affinity.features.isolation import device_of
from branchnet.affinity.features.memory_plan import Chunk, Passes, default_limit, plan_passes
from branchnet.affinity.measure_options import Options
from branchnet.affinity.measures.grams import Centring, Gram, GramAccumulator
from branchnet.affinity.measures.rdms import Dissimilarity, centring_for, mean_rdm, rdm_of_gram, upper_triangle
from branchnet.affinity.networks import Family, Member
from branchnet.affinity.probes import Probe
from branchnet.errors import AffinityError
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.progress import progress_bar

Signature: TypeAlias = npt.NDArray[np.floating]

_EXACT = "exact"
_ROUNDED = "bfloat16"
# Rounding of float32 sums of a few thousand products: inner products this close say that all inputs are the same.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Kind:
    """A kind of signature: how inner products are centred, and what is made of those of the tensors of one cut.

    Attributes:
        name: distinguishes kinds in the cache.
        centring: of the features.
        finish: inner products of every tensor of a cut -> the signature, float64.
        shape: number of inputs -> the signature's shape.
    """

    name: str
    centring: Centring
    finish: Callable[[Sequence[Gram]], Tensor]
    shape: Callable[[int], tuple[int, ...]]


def rdm_kind(dissimilarity: Dissimilarity, center: bool) -> Kind:
    """The upper triangle of the RDM."""

    def finish(grams: Sequence[Gram]) -> Tensor:
        return upper_triangle(mean_rdm([rdm_of_gram(one, dissimilarity) for one in grams], dissimilarity))

    return Kind(
        f"rdm {dissimilarity} {center}", centring_for(dissimilarity, center), finish, lambda k: (k * (k - 1) // 2,)
    )


def gram_kind() -> Kind:
    """Inner products of the features less their mean over the inputs, every tensor scaled to trace 1, (K, K)."""

    def finish(grams: Sequence[Gram]) -> Tensor:
        for one in grams:
            if not torch.isfinite(one.products).all():
                raise AffinityError("the features are not all finite; expected no NaN and no infinity")
        if any((one.products.diagonal() <= one.floor).all() for one in grams):
            raise AffinityError("the features of all inputs are the same; expected some that differ between inputs")
        return torch.stack([one.products / one.products.trace() for one in grams]).mean(dim=0)

    return Kind("gram", Centring(inputs=True), finish, lambda k: (k, k))


def _varies(one: Gram, centring: Centring) -> bool:
    """Whether inputs differ at all. A mask or a position table does not, and says nothing about them."""
    if not torch.isfinite(one.products).all():
        return True
    if centring.inputs:
        return bool((one.products.diagonal() > one.floor).any())
    return bool((one.products - one.products[0, 0]).abs().max() > _EQUAL * one.products.abs().max())


@keeping_freed_memory()
def read_signatures(family: Family, probe: Probe, kind: Kind, options: Options) -> list[list[Signature]]:
    """Signature of every member at every location: `[location][member]`.

    Under `torch.distributed` the networks are scattered over the processes and every one returns all signatures.

    Raises:
        AffinityError: features that are constant or not finite, naming task and location.
    """
    reader = _Reader(probe, family.locations, kind, options)
    rank, size = world()
    if size > 1:
        check_same_probe(probe)
    ranks = [reading_rank(number, len(family.members)) for number in range(len(family.members))]
    rows: dict[int, list[Signature]] = {}
    with progress_bar("reading features", len(ranks), shown=sys.stderr.isatty() and rank == 0) as advance:

        def read(numbers: Sequence[int]) -> None:
            for number in numbers:
                rows[number] = reader.read(family.members[number], together=ranks[number] is None and size > 1)
                advance(family.members[number].label)

        barrier(lambda: read([number for number, source in enumerate(ranks) if source == rank]))
        read([number for number, source in enumerate(ranks) if source is None])
    for number, source in enumerate(ranks):
        if source is not None and size > 1:
            rows[number] = broadcast(rows.get(number), source)
    return [[rows[number][location] for number in range(len(ranks))] for location in range(len(family.locations))]


@keeping_freed_memory()
def read_chunks(member: Member, probe: Probe, locations: Sequence[str], options: Options, consume: Consumer) -> None:
    """Call `consume` with the features of one network, in as many passes as memory asks for."""
    layout = find_layout(member, probe.example, locations, options.place, options.features)
    passes = plan_passes(list(layout.chunks), probe.inputs, _memory_limit(member, options))
    read_features(member, probe, layout, passes, locations, consume, device=options.place, transform=options.features)


def _without(passes: Passes, found: Container[int]) -> Passes:
    """What is left of the passes without these locations."""
    left = (tuple(chunk for chunk in chunks if chunk.location not in found) for chunks in passes)
    return tuple(chunks for chunks in left if chunks)


def _memory_limit(member: Member, options: Options) -> int:
    if options.memory_limit is not None:
        return options.memory_limit
    return default_limit(options.place or device_of(member.network))


@dataclass(frozen=True)
class _Reader:
    """Reads one network after another with the same settings."""

    probe: Probe
    locations: Sequence[str]
    kind: Kind
    options: Options

    def read(self, member: Member, *, together: bool) -> list[Signature]:
        """Signatures at all locations, from the cache as far as it has them; `together` with the other processes."""
        cache = self._cache(member)
        found = self._cached(cache, _EXACT, together, range(len(self.locations)))
        if len(found) < len(self.locations):
            layout = find_layout(member, self.probe.example, self.locations, self.options.place, self.options.features)
            passes = self._plan(member, layout, found, together)
            rounded = {chunk.location for chunks in passes for chunk in chunks if chunk.rounded}
            found |= self._cached(cache, _ROUNDED, together, rounded)
            sums = self._sums(member, layout, _without(passes, found), together)
            for location in sums:
                found[location] = self._finished(member, location, list(sums[location].values()), layout.dtype)
                if cache is not None and (not together or world()[0] == 0):
                    cache.write(location, _ROUNDED if location in rounded else _EXACT, found[location])
        return [found[location] for location in range(len(self.locations))]

    def _cache(self, member: Member) -> Cache | None:
        if self.options.cache is None:
            return None
        settings = (self.kind.name, self.options.tensors, self.probe.content)
        return open_cache(Path(self.options.cache), member, settings, self.options.features)

    def _cached(
        self, cache: Cache | None, kept_as: str, together: bool, locations: Iterable[int]
    ) -> dict[int, Signature]:
        if cache is None:
            return {}
        shape = self.kind.shape(self.probe.inputs)
        read = {location: cache.read(location, kept_as, shape) for location in locations}
        found = {location: signature for location, signature in read.items() if signature is not None}
        return broadcast(found, 0) if together else found

    def _plan(self, member: Member, layout: Layout, found: Container[int], together: bool) -> Passes:
        """Passes over what is not found yet. Processes that share a probe each keep some of the inputs."""
        inputs, limit = self.probe.inputs, _memory_limit(member, self.options)
        if together:
            # Twice a process's share: what it read and what it receives from the others are held at once.
            inputs, limit = -(-2 * inputs // world()[1]), smallest(limit)
        missing = [chunk for chunk in layout.chunks if chunk.location not in found]
        return plan_passes(missing, inputs, limit)

    def _sums(
        self, member: Member, layout: Layout, passes: Passes, together: bool
    ) -> dict[int, dict[int, GramAccumulator]]:
        """Inner products of every tensor at every location."""
        sums: dict[int, dict[int, GramAccumulator]] = {}
        rank, size = world() if together else (0, 1)
        shares = [share_of(self.probe, each, size) for each in range(size)]
        counts = [sum(self.probe.sizes[index] for index in share) for share in shares]
        place = self.options.place or device_of(member.network)

        def add(chunk: Chunk, features: Kept) -> None:
            total = sums.setdefault(chunk.location, {}).setdefault(chunk.tensor, GramAccumulator(self.kind.centring))
            total.add(columns_of_all(features, counts, chunk, place) if together else features)

        read_features(
            member,
            self.probe,
            layout,
            passes,
            self.locations,
            add,
            device=self.options.place,
            transform=self.options.features,
            share=shares[rank],
            barrier=barrier if together else None,
        )
        if together:
            for tensors in sums.values():
                for total in tensors.values():
                    total.sum_over_ranks()
        return sums

    def _finished(
        self, member: Member, location: int, sums: Sequence[GramAccumulator], dtype: torch.dtype
    ) -> Signature:
        varying = [one for one in sums if _varies(one.finish(), self.kind.centring)] or list(sums)
        if self.options.tensors == "concatenate":
            varying = [GramAccumulator.joined(varying)]
        try:
            signature = self.kind.finish([one.finish() for one in varying])
        except AffinityError as error:
            raise AffinityError(f"{member.label} at {self.locations[location]!r}: {error}") from error
        # Sums were kept in float64; what is stored has the features' own precision, which is all that they can show.
        return signature.to(torch.promote_types(dtype, torch.float32)).cpu().numpy()
