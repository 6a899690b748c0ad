"""Choose among the places where networks can be cut: by name, by number, or a few meaningful ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from branchnet.errors import SplitError
from branchnet.stages.locations import Location

_MOST = 5
_FEWEST = 3
_DOMINANT = 0.5
_TRIVIAL = 0.01

Locations = int | Sequence[str] | None


def choose(candidates: Sequence[Location], wanted: Locations, whole: tuple[int, int]) -> list[Location]:
    """The chosen locations, in order.

    Args:
        candidates: every place, in order.
        wanted: None for a few at the ends of stages or blocks, an int for that many of equal cost, or names.
        whole: parameters and multiply-adds of the whole network.

    Raises:
        SplitError: there are fewer places than asked for, or a name is none of them.
    """
    if not candidates:
        raise SplitError("there is no place at which to cut: no module ends between the input and the last parameters")
    if wanted is None:
        return _meaningful(candidates, whole)
    if isinstance(wanted, bool | str):
        raise SplitError(f"locations must be None, a number or a list of module names; it is {wanted!r}")
    if isinstance(wanted, int):
        return _balanced(candidates, wanted, whole)
    return _named(candidates, wanted)


def _named(candidates: Sequence[Location], names: Sequence[str]) -> list[Location]:
    places = {alias: place for place in candidates for alias in place.aliases}
    if not names:
        raise SplitError("at least one location is needed")
    for name in names:
        if name not in places:
            close = difflib.get_close_matches(name, places, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(_some(candidates))}"
            raise SplitError(f"{name!r} is no place at which the network can be cut; {hint}")
    chosen = [_renamed(places[name], name) for name in names]
    for before, after in pairwise(chosen):
        if before.position >= after.position:
            raise SplitError(
                f"locations must follow the order of computation; {after.name!r} is not after {before.name!r}"
            )
    return chosen


def _renamed(place: Location, name: str) -> Location:
    return replace(place, name=name)


def _some(candidates: Sequence[Location]) -> list[str]:
    names = [place.name for place in candidates]
    return names if len(names) <= 12 else [*names[:11], "..."]


def _share(place: Location, whole: tuple[int, int]) -> float:
    """How much of the network lies before the place: the mean of its share of parameters and of multiply-adds."""
    return (
        sum(part / total if total else 0.0 for part, total in zip((place.params, place.flops), whole, strict=True)) / 2
    )


def _meaningful(candidates: Sequence[Location], whole: tuple[int, int]) -> list[Location]:
    """Ends of the largest modules none of which holds half of the network, at most five, at least three if possible."""
    opened: set[str] = set()
    chosen = _ends_of_children(candidates, opened, whole)
    while dominant := _to_open(candidates, chosen, opened, whole):
        opened.add(dominant)
        chosen = _ends_of_children(candidates, opened, whole)
    return _balance(chosen, _MOST, whole) if len(chosen) > _MOST else chosen


def _ends_of_children(candidates: Sequence[Location], opened: set[str], whole: tuple[int, int]) -> list[Location]:
    """Ends of the modules whose parents are all opened, without those that add next to nothing."""
    kept: list[Location] = []
    for place in candidates:
        names = [name for name in place.aliases if _parents(name) <= opened]
        if not names or not {name.partition("@")[0] for name in place.inside} <= opened:
            continue
        names = [name for name in names if name not in opened] or names
        share = _share(place, whole)
        before = _share(kept[-2], whole) if len(kept) > 1 else 0.0
        if kept and share - _share(kept[-1], whole) < _TRIVIAL:
            around = [name for name in place.aliases if name in opened and name in _parents(kept[-1].name)]
            small = len(kept) == 1 and _share(kept[-1], whole) - before < 5 * _TRIVIAL
            if small or len(place.shapes) < len(kept[-1].shapes):
                kept[-1] = _renamed(place, names[0])
            elif around:
                kept[-1] = _renamed(place, around[0])
            continue
        kept.append(_renamed(place, names[0]))
    if len(kept) > _FEWEST and _share(kept[0], whole) < 5 * _TRIVIAL:
        kept = kept[1:]
    return kept


def _parents(name: str) -> set[str]:
    parts = name.partition("@")[0].split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts))}


def _to_open(
    candidates: Sequence[Location], chosen: Sequence[Location], opened: set[str], whole: tuple[int, int]
) -> str | None:
    """The module with the largest piece, if that is half of the network or there are too few pieces."""
    inner = {parent for place in candidates for alias in place.aliases for parent in _parents(alias)} - opened
    inner = {name for name in inner if _parents(name) <= opened}
    sizes: dict[str, float] = {}
    shares = {id(place): _share(place, whole) for place in candidates}
    for name in inner:
        inside = [p for p in candidates if any(name in {*_parents(a), a.partition("@")[0]} for a in p.aliases)]
        first = candidates.index(inside[0])
        start = shares[id(candidates[first - 1])] if first else 0.0
        calls = sum(alias.partition("@")[0] == name for place in inside for alias in place.aliases)
        sizes[name] = (shares[id(inside[-1])] - start) / max(calls, 1)
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    if largest is not None and sizes[largest] > 2 * _TRIVIAL and (sizes[largest] > _DOMINANT or len(chosen) < _FEWEST):
        return largest
    return None


def _balanced(candidates: Sequence[Location], count: int, whole: tuple[int, int]) -> list[Location]:
    if not 1 <= count <= len(candidates):
        raise SplitError(f"{count} locations were asked for; this network has between 1 and {len(candidates)}")
    for places in _preferred(candidates):
        if len(places) >= count:
            break
    return _balance(places, count, whole)


def _preferred(candidates: Sequence[Location]) -> tuple[Sequence[Location], ...]:
    """Places from good to acceptable: ends of modules with children, ends of any module, all places.

    The first two leave out places inside a module at which more tensors are alive than at that module's end.
    """
    alive = {alias: len(place.shapes) for place in candidates for alias in place.aliases}
    containers = {parent for alias in alive for parent in _parents(alias)}
    tidy = [
        place
        for place in candidates
        if len(place.shapes) <= min((alive.get(p, 1 << 30) for p in _parents(place.name)), default=1 << 30)
    ]
    return [place for place in tidy if containers & set(place.aliases)], tidy, candidates


def _balance(candidates: Sequence[Location], count: int, whole: tuple[int, int]) -> list[Location]:
    """`count` places that end at the last one and give stages of nearly equal cost.

    A dynamic programme over (place, number of stages) minimises the sum of squared shares; ties go to earlier places.
    """
    shares = [_share(place, whole) for place in candidates]
    last = _last_worthwhile(shares, count)
    best: list[dict[int, tuple[float, int]]] = [{k: (share**2, -1) for k, share in enumerate(shares[: last + 1])}]
    for _ in range(count - 1):
        before = best[-1]
        row = {}
        for k in range(last + 1):
            options = [(before[j][0] + (shares[k] - shares[j]) ** 2, j) for j in before if j < k]
            if options:
                row[k] = min(options)
        best.append(row)
    picked, k = [], last
    for row in reversed(best):
        picked.append(candidates[k])
        k = row[k][1]
    return picked[::-1]


def _last_worthwhile(shares: Sequence[float], count: int) -> int:
    """The first place after which next to nothing more of the backbone comes, leaving room for `count` places."""
    end = next(k for k, share in enumerate(shares) if share >= shares[-1] - _TRIVIAL / 10)
    return max(end, count - 1)
