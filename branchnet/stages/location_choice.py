"""Choose among the places where networks can be cut: by name, by number, or a few meaningful ones.

How much of a network lies before a place is its *share*: the mean of its share of the parameters and of its share of
the multiply-adds. Early stages of a convolutional network hold the work and late ones the parameters, so that either
number alone would put all places at one end. A module is *opened* where its children's ends are looked at instead of
its own end.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from branchnet.errors import SplitError
from branchnet.stages.locations import Location
from branchnet.stages.tracing.fx_tracer import PREPROCESSING

# Published trees branch behind the four blocks of a ResNet (Vandenhende et al. 2020). With each place more, the number
# of trees grows as the iterated Bell numbers.
_MOST = 5
_FEWEST = 3
# A stage that holds half of the network decides nearly everything by itself, so its module is opened.
_DOMINANT = 0.5
# A stage of less than 1% (a normalisation, a pooling layer) only makes the search longer; below 5%, a first stage is a
# stem that nothing is gained by sharing on its own.
_TRIVIAL = 0.01
_STEM = 0.05

Locations = int | Sequence[str] | None


def choose(
    candidates: Sequence[Location],
    preferred: Sequence[Location],
    wanted: Locations,
    whole: tuple[int, int],
    exits: Sequence[int] = (),
) -> list[Location]:
    """Choose locations.

    Args:
        candidates: every place, in order, of which names may name any.
        preferred: those among which to choose otherwise, unless more are asked for.
        wanted: None for a few at the ends of stages or blocks, an int for that many of equal cost, or names.
        whole: parameters and multiply-adds of the whole network.
        exits: positions before which networks leave the trunk; where there are several, the last place before each is
            chosen, too, unless names are given.

    Returns:
        The chosen locations, from input to output.

    Raises:
        SplitError: there are fewer places than asked for, or a name is none of them.
    """
    if not candidates:
        raise SplitError(
            "there is no place at which to cut; expected a module that ends between the input and the last parameters"
        )
    if wanted is None:
        chosen = _meaningful(preferred, whole)
        return _with_exits(chosen, preferred, exits, whole) if len(exits) > 1 else chosen
    if isinstance(wanted, bool | str):
        raise SplitError(f"locations is {wanted!r}; expected None, a number or a list of module names")
    if isinstance(wanted, int):
        places = preferred if wanted <= len(preferred) else candidates
        return _moved_to_exits(_balanced(places, wanted, whole), places, exits[:-1])
    return _named(candidates, wanted)


def with_samples_first(candidates: Sequence[Location], batch: int | None) -> list[Location]:
    """The places at which some tensor holds the samples in its first dimension; all places where none does.

    Only these can be compared sample by sample: inside a layer that works on columns or windows, (samples x columns,
    length, channels), is no good place to branch.
    """
    return [place for place in candidates if any(shape[:1] == (batch,) for shape in place.shapes)] or list(candidates)


def behind_transforms(candidates: Sequence[Location]) -> list[Location]:
    """The places behind the preprocessing that networks were given, which is a part of stage 0 and no stage itself."""
    return [place for place in candidates if place.aliases[0].partition(".")[0] != PREPROCESSING] or list(candidates)


def _with_exits(
    chosen: Sequence[Location], places: Sequence[Location], exits: Sequence[int], whole: tuple[int, int]
) -> list[Location]:
    """The last place before every exit with the chosen ones, in place of those that are next to it."""
    kept = list(chosen)
    last = _last_before(places, exits)
    for exit_place in last:
        near = [place for place in kept if abs(_share(place, whole) - _share(exit_place, whole)) < _TRIVIAL]
        same = next((place for place in near if place.position == exit_place.position), exit_place)
        kept = [place for place in kept if place not in near or place in last] + [same]
    return sorted({place.position: place for place in kept}.values(), key=lambda place: place.position)


def _moved_to_exits(chosen: Sequence[Location], places: Sequence[Location], exits: Sequence[int]) -> list[Location]:
    """The chosen places, of which those nearest to exits are moved there, as far as there are enough."""
    kept = list(chosen)
    for exit_place in _last_before(places, exits)[: len(kept)]:
        near = min(kept, key=lambda place: abs(place.position - exit_place.position))
        kept = [place for place in kept if place is not near] + [exit_place]
    return sorted(kept, key=lambda place: place.position)


def _last_before(places: Sequence[Location], exits: Sequence[int]) -> list[Location]:
    last = [[place for place in places if place.position < position] for position in exits]
    return [before[-1] for before in last if before]


def _named(candidates: Sequence[Location], names: Sequence[str]) -> list[Location]:
    places = {alias: place for place in candidates for alias in place.aliases}
    if not names:
        raise SplitError("locations is empty; expected at least one module name, or None")
    for name in names:
        if name not in places:
            close = difflib.get_close_matches(name, places, n=3, cutoff=0.5)
            expected = f"one of {', '.join(_some(candidates))}"
            hint = f"did you mean {' or '.join(close)}?" if close else f"expected {expected}"
            raise SplitError(f"{name!r} is not a place at which the network can be cut; {hint}")
    chosen = [_renamed(places[name], name) for name in names]
    for before, after in pairwise(chosen):
        if before.position >= after.position:
            raise SplitError(f"{after.name!r} is not after {before.name!r}; expected locations in order of computation")
    return chosen


def _renamed(place: Location, name: str) -> Location:
    return replace(place, name=name)


def _some(candidates: Sequence[Location]) -> list[str]:
    names = [place.name for place in candidates]
    return names if len(names) <= 12 else [*names[:11], "..."]


def _share(place: Location, whole: tuple[int, int]) -> float:
    """How much of the network lies before the place: the mean of its share of parameters and of multiply-adds."""
    spent = (place.params, place.flops)
    return sum(count / total if total else 0.0 for count, total in zip(spent, whole, strict=True)) / 2


def _meaningful(candidates: Sequence[Location], whole: tuple[int, int]) -> list[Location]:
    """Ends of the largest modules none of which holds half of the network, at most five, at least three if possible.

    Where what can be shared is too small a share of the network to open any module, it is one stage.
    """
    opened: set[str] = set()
    chosen = _ends_of_children(candidates, opened, whole)
    while dominant := _to_open(candidates, chosen, opened, whole):
        opened.add(dominant)
        chosen = _ends_of_children(candidates, opened, whole)
    return _balance(chosen, _MOST, whole) if len(chosen) > _MOST else chosen or [candidates[-1]]


def _ends_of_children(candidates: Sequence[Location], opened: set[str], whole: tuple[int, int]) -> list[Location]:
    """Ends of the modules whose parents are all opened, each with a stage worth having before it.

    A place that adds next to nothing to the last one does not become a stage: it takes the last one's place where it
    makes the better cut.
    """
    kept: list[Location] = []
    for place in candidates:
        name = _name_among_children(place, opened)
        if name is None:
            continue
        if not kept or _share(place, whole) - _share(kept[-1], whole) >= _TRIVIAL:
            kept.append(_renamed(place, name))
        elif _is_stem(kept, whole) or _is_narrower(place, kept[-1]):
            kept[-1] = _renamed(place, name)
        elif ended := _container_ending_at(place, kept[-1], opened):
            kept[-1] = _renamed(place, ended)
    return kept[1:] if len(kept) > _FEWEST and _is_stem(kept[:1], whole) else kept


def _name_among_children(place: Location, opened: set[str]) -> str | None:
    """The module by which the place is reached through opened ones alone; a child's name before an opened module's."""
    names = [name for name in place.aliases if _parents(name) <= opened]
    if not names or not {name.partition("@")[0] for name in place.inside} <= opened:
        return None
    return next((name for name in names if name not in opened), names[0])


def _is_stem(kept: Sequence[Location], whole: tuple[int, int]) -> bool:
    """Whether there is one stage so far and it is small, such as a first convolution before its pooling."""
    return len(kept) == 1 and _share(kept[0], whole) < _STEM


def _is_narrower(place: Location, last: Location) -> bool:
    """Whether fewer tensors have to be carried across this place: a skip connection has ended."""
    return len(place.shapes) < len(last.shapes)


def _container_ending_at(place: Location, last: Location, opened: set[str]) -> str | None:
    """The opened module around the last place that ends here: `features` names the cut better than its last child."""
    return next((name for name in place.aliases if name in opened and name in _parents(last.name)), None)


def _parents(name: str) -> set[str]:
    names = name.partition("@")[0].split(".")
    return {".".join(names[:k]) for k in range(1, len(names))}


def _to_open(
    candidates: Sequence[Location], chosen: Sequence[Location], opened: set[str], whole: tuple[int, int]
) -> str | None:
    """The module that holds most of the network, if that is more than half or there are too few places without it."""
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
    # Two children of at least 1% each are the least that opening a module could add.
    if largest is not None and sizes[largest] > 2 * _TRIVIAL and (sizes[largest] > _DOMINANT or len(chosen) < _FEWEST):
        return largest
    return None


def _balanced(candidates: Sequence[Location], count: int, whole: tuple[int, int]) -> list[Location]:
    if not 1 <= count <= len(candidates):
        raise SplitError(f"locations is {count}; expected between 1 and {len(candidates)} for this network")
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
    # A tenth of a trivial stage: a final normalisation or pooling would otherwise pull the last cut behind it.
    end = next(k for k, share in enumerate(shares) if share >= shares[-1] - _TRIVIAL / 10)
    return max(end, count - 1)
