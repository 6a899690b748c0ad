"""What is kept of a network at a location: one (K, K) matrix over the probe inputs, an RDM or inner products."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchnet.errors import AffinityError
from branchnet.progress import progress_bar

from .features import Arena, Consumer, find_layout, read_features
from .grams import Centring, Gram, GramAccumulator
from .guards import device_of
from .memory import Piece, default_limit, plan_passes
from .networks import Family, Member
from .options import Options
from .probes import Probe
from .rdms import Dissimilarity, centring_for, mean_rdm, rdm_of_gram, upper_triangle

Signature: TypeAlias = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Kind:
    """A kind of signature: how inner products are centred, and what is made of those of the tensors of one cut.

    Attributes:
        name: distinguishes kinds in the cache.
        centring: of the features.
        finish: inner products of every tensor of a cut -> the signature, float64.
    """

    name: str
    centring: Centring
    finish: Callable[[Sequence[Gram]], Tensor]


def rdm_kind(dissimilarity: Dissimilarity, center: bool) -> Kind:
    """The upper triangle of the RDM."""

    def finish(grams: Sequence[Gram]) -> Tensor:
        varying = grams if len(grams) == 1 else [one for one in grams if not _same_for_all(one)]
        return upper_triangle(mean_rdm([rdm_of_gram(one, dissimilarity) for one in varying or grams], dissimilarity))

    return Kind(f"rdm {dissimilarity} {center}", centring_for(dissimilarity, center), finish)


def gram_kind() -> Kind:
    """Inner products of the features less their mean over the inputs, every tensor scaled to trace 1, (K, K)."""

    def finish(grams: Sequence[Gram]) -> Tensor:
        for one in grams:
            if not torch.isfinite(one.products).all():
                raise AffinityError("the features are not all finite")
        varying = [one.products for one in grams if (one.products.diagonal() > one.floor).any()]
        if not varying:
            raise AffinityError("the features of all inputs are the same")
        return torch.stack([products / products.trace() for products in varying]).mean(dim=0)

    return Kind("gram", Centring(inputs=True), finish)


def _same_for_all(one: Gram) -> bool:
    """Whether every input has the same features: a mask, a position table; it says nothing about the inputs."""
    products = one.products
    return bool((products == products[0, 0]).all())


def read_signatures(family: Family, probe: Probe, kind: Kind, options: Options) -> list[list[Signature]]:
    """Signature of every member at every location: `[location][member]`.

    Raises:
        AffinityError: features that are constant or not finite, naming task and location.
    """
    arena, rows = Arena(), []
    with progress_bar("reading features", len(family.members), shown=sys.stderr.isatty()) as advance:
        for member in family.members:
            rows.append(_read_member(member, probe, family.locations, kind, options, arena))
            advance(member.label)
    return [[row[location] for row in rows] for location in range(len(family.locations))]


def read_pieces(
    member: Member, probe: Probe, locations: Sequence[str], options: Options, arena: Arena, consume: Consumer
) -> torch.dtype:
    """Call `consume` with the features of one network, as memory allows; returns the dtype they were computed in."""
    layout = find_layout(member, probe.example(), locations, options.place, options.features)
    limit = options.memory_limit or default_limit(options.place or device_of(member.network)) + arena.numbers.nbytes
    plan = plan_passes(list(layout.pieces), layout.dtype, probe.inputs, limit)
    read_features(
        member, probe, plan, locations, consume, arena=arena, device=options.place, transform=options.features
    )
    return layout.dtype


def _read_member(
    member: Member, probe: Probe, locations: Sequence[str], kind: Kind, options: Options, arena: Arena
) -> list[Signature]:
    sums: dict[tuple[int, int], GramAccumulator] = {}

    def add(piece: Piece, features: Tensor) -> None:
        key = (piece.location, 0 if options.tensors == "concatenate" else piece.tensor)
        sums.setdefault(key, GramAccumulator(kind.centring)).add(features)

    kept = torch.promote_types(read_pieces(member, probe, locations, options, arena, add), torch.float32)
    return [
        _finish([one for key, one in sums.items() if key[0] == location], kind, member, name).to(kept).cpu().numpy()
        for location, name in enumerate(locations)
    ]


def _finish(sums: Sequence[GramAccumulator], kind: Kind, member: Member, location: str) -> Tensor:
    try:
        return kind.finish([one.finish() for one in sums])
    except AffinityError as error:
        raise AffinityError(f"{member.label} at {location!r}: {error}") from error
