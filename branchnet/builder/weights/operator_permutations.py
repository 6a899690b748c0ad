"""Which permutations one operator propagates: tried on random numbers, see `symmetries`.

Parameters join the permutation of the features that they meet, or found a space of their own. A space that some
operator cannot propagate (the groups of a group normalisation, attention heads) is fixed: its units keep their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.weights.unit_spaces import Axes, Known, Spaces, UnitIndex, permuted, unit_indices
from branchnet.utils.installed_torch.torch_internals import tree_flatten, tree_leaves, tree_unflatten
from branchnet.utils.random_state import seeded

MOST_COMPANIONS = 7
"""All 2^7 = 128 subsets of that many axes and spaces are tried; of more, those of up to two."""
ROUNDING = {torch.float64: 1e-10}
COARSE_ROUNDING = 1e-5
"""Relative differences that a permuted sum's other order of additions explains: float64, and operators that compute in
float32 whatever they are given."""


class Effect(Enum):
    """What an operator does with a permutation of what it reads."""

    PROPAGATED = auto()
    """Its results are permuted."""
    UNDONE = auto()
    """Its results stay as they are."""
    BROKEN = auto()
    """Its results change in another way, or it fails."""


class SlotAxis(NamedTuple):
    """One axis of one of the tensors that an operator reads."""

    slot: int
    axis: int


Adopted = Mapping[SlotAxis, tuple[UnitIndex, ...]]
"""Open axes with the units that they are to carry."""


@dataclass
class _Slot:
    """One tensor that an operator reads: random numbers in its shape, the axes that carry units, and those that may."""

    value: Tensor
    axes: dict[int, tuple[UnitIndex, ...]]
    open: set[int] = field(default_factory=set)


class Operator:
    """One operator on random numbers: which permutations of what it reads it propagates.

    Args:
        node: the operator in its graph.
        read: what each node that it reads returned, with the axes of each of its leaves.
        result: what it returned for those.
        module: the module that it calls, or None.
        spaces: all spaces of the network; joined, fixed and founded here.
        known: the axes of parameters that were met before; those that are met here are added.
        stage: the stage that it is in, where new spaces originate.
    """

    def __init__(
        self,
        node: fx.Node,
        read: Mapping[fx.Node, tuple[Any, Sequence[Axes]]],
        result: Any,
        module: nn.Module | None,
        spaces: Spaces,
        known: Known,
        stage: int,
    ) -> None:
        self._node = node
        self._read = read
        self._module = module
        self._spaces = spaces
        self._known = known
        self._stage = stage
        self._generator = torch.Generator().manual_seed(0)
        self._slots: list[_Slot] = []
        self._held: list[tuple[str, Tensor]] = []
        self._collect()
        leaves = tree_leaves(result)
        self._tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._labels: list[dict[int, tuple[UnitIndex, ...]]] = [{} for _ in leaves]

    def label(self) -> list[Axes]:
        """Label the axes of the results, and those of parameters that are met here for the first time.

        Returns:
            for each leaf of the result its axes.
        """
        self._before: list[Tensor] | None
        try:
            self._before = self._evaluate([slot.value for slot in self._slots])
        except Exception:  # an operator that cannot be run on random numbers propagates nothing
            self._before = None
        for space in self._spaces_read():
            # Propagating an earlier one may have joined this one to it.
            if self._spaces.root(space) == space and not self._spaces.fixed(space) and not self._propagate(space):
                self._spaces.fix(space)
        if self._before is not None:
            self._found_spaces()
        return list(self._labels)

    def _collect(self) -> None:
        """Gather what the operator reads; tensors of a module's own, and parameters, stay open until labelled."""
        nodes: list[fx.Node] = []
        fx.node.map_arg((self._node.args, self._node.kwargs), nodes.append)
        for node in nodes:
            value, labels = self._read[node]
            for leaf, axes in zip(tree_leaves(value), labels, strict=True):
                if isinstance(leaf, Tensor):
                    own = node.op == "get_attr" and leaf.is_floating_point()
                    self._slots.append(self._parameter(leaf) if own else _Slot(self._random(leaf), dict(axes)))
        for name, tensor in tensors_of(self._module).items() if self._module is not None else ():
            if tensor.is_floating_point():
                self._held.append((name, tensor))
                self._slots.append(self._parameter(tensor, negative=name.endswith("running_mean")))

    def _parameter(self, tensor: Tensor, *, negative: bool = False) -> _Slot:
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
        value = self._random(tensor) * (-1 if negative else 2 / fan_in if fan_in > 1 else 1)
        if id(tensor) in self._known:
            return _Slot(value, self._known[id(tensor)])
        axes = self._known[id(tensor)] = {}
        return _Slot(value, axes, {axis for axis, length in enumerate(tensor.shape) if length > 1})

    def _random(self, tensor: Tensor) -> Tensor:
        """Numbers between 0.1 and 0.9; integers stay.

        Weights are scaled so that sums over inputs stay there, and means are negative: then no activation inside an
        operator saturates or vanishes, every root exists, and no two units look similar.
        """
        if not tensor.is_floating_point():
            return tensor
        return 0.1 + 0.8 * torch.rand(tensor.shape, generator=self._generator, dtype=torch.float64)

    def _evaluate(self, values: Sequence[Tensor]) -> list[Tensor]:
        given = iter([value.clone() for value in values])

        def exchange(node: fx.Node) -> Any:
            leaves, spec = tree_flatten(self._read[node][0])
            return tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

        args, kwargs = fx.node.map_arg((self._node.args, self._node.kwargs), exchange)
        with seeded(0), torch.no_grad():  # an operator that draws random numbers draws the same ones every time
            if self._module is not None:
                state = {name: next(given) for name, _ in self._held}
                result = functional_call(self._module, state, args, kwargs)
            elif self._node.op == "call_method":
                result = getattr(args[0], str(self._node.target))(*args[1:], **kwargs)
            else:
                result = self._node.target(*args, **kwargs)  # type: ignore[operator]
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def _propagate(self, space: int) -> bool:
        """Propagate a space, with the fewest open axes and other spaces that have to move with it; False if it breaks.

        `x @ weight` is such a case: the columns of the weight must be permuted as the features are.
        """
        if self._before is None:
            return False
        templates = self._templates(space)
        for companions in _subsets([*self._open_axes(templates), *self._peers(space)]):
            joined = {other for other in companions if isinstance(other, int)}
            axes = [key for key in companions if isinstance(key, SlotAxis)]
            adopted = {key: templates[self._length(key)] for key in axes}
            if self._try({space} | joined, self._spaces.sizes[space], adopted) is not Effect.BROKEN:
                for other in joined:
                    self._spaces.join(space, other)
                self._commit(self._spaces.root(space), adopted)
                return True
        return False

    def _templates(self, space: int) -> dict[int, tuple[UnitIndex, ...]]:
        """How the axes that carry a space carry it, by their lengths: open axes of that length could carry it so."""
        return {
            slot.value.shape[axis]: carriers
            for slot in reversed(self._slots)
            for axis, carriers in slot.axes.items()
            if any(self._spaces.root(carrier.space) == space for carrier in carriers)
        }

    def _open_axes(self, lengths: Mapping[int, Any]) -> list[SlotAxis]:
        every = (SlotAxis(i, axis) for i, slot in enumerate(self._slots) for axis in sorted(slot.open))
        return [key for key in every if self._length(key) in lengths]

    def _peers(self, space: int) -> list[int]:
        """The other spaces of the same size that the operator reads and that can be permuted."""
        size = self._spaces.sizes[space]
        return [
            other
            for other in self._spaces_read()
            if other != space and self._spaces.sizes[other] == size and not self._spaces.fixed(other)
        ]

    def _spaces_read(self) -> list[int]:
        carriers = (carrier for slot in self._slots for carrier in unit_indices(slot.axes))
        return list(dict.fromkeys(self._spaces.root(carrier.space) for carrier in carriers))

    def _length(self, key: SlotAxis) -> int:
        return self._slots[key.slot].value.shape[key.axis]

    def _found_spaces(self) -> None:
        """Let the axes of new parameters that nothing has claimed move by themselves where the operator allows it."""
        waiting = [SlotAxis(i, axis) for i, slot in enumerate(self._slots) for axis in sorted(slot.open)]
        while waiting:
            lead = waiting.pop(0)
            size = self._length(lead)
            peers = [key for key in waiting if self._length(key) == size]
            for chosen in _subsets(peers):
                space = self._spaces.new(size, self._stage)
                adopted = {key: (UnitIndex(space, torch.arange(size)[None]),) for key in (lead, *chosen)}
                # A permutation that is undone inside the operator founds no space: no feature carries its units.
                if self._try({space}, size, adopted) is Effect.PROPAGATED:
                    self._commit(space, adopted)
                    waiting = [key for key in waiting if key not in chosen]
                    break
                self._spaces.fix(space)

    def _try(self, joined: set[int], size: int, adopted: Adopted) -> Effect:
        """Try one random permutation of the joined spaces, other than the identity."""
        order = torch.randperm(size, generator=self._generator)
        maps = self._maps(joined, order.roll(1) if torch.equal(order, torch.arange(size)) else order, adopted)
        if maps is None:
            return Effect.BROKEN
        return Effect.PROPAGATED if any(maps) else Effect.UNDONE

    def _maps(self, joined: set[int], order: Tensor, adopted: Adopted) -> list[dict[int, Tensor]] | None:
        """For each result the axis that the permutation moves and how; None where a result changes otherwise."""
        values = []
        for i, slot in enumerate(self._slots):
            axes = slot.axes | {key.axis: carriers for key, carriers in adopted.items() if key.slot == i}
            spaces = {c.space: order for c in unit_indices(axes) if self._spaces.root(c.space) in joined}
            values.append(permuted(slot.value, axes, spaces))
        assert self._before is not None
        try:
            after = self._evaluate(values)
        except Exception:  # e.g. indices that a permuted table does not hold
            return None
        maps = [_reordering(one, other) for one, other in zip(self._before, after, strict=True)]
        return None if any(found is None for found in maps) else maps  # type: ignore[return-value]

    def _commit(self, space: int, adopted: Adopted) -> None:
        """Label the adopted axes, and the results by what two permutations that generate all others do to them."""
        for key, carriers in adopted.items():
            self._slots[key.slot].axes[key.axis] = carriers
            self._slots[key.slot].open.discard(key.axis)
        size = self._spaces.sizes[space]
        cycle = torch.arange(size).roll(-1)
        swap = torch.cat([torch.arange(2).flip(0), torch.arange(2, size)])
        cycled, swapped = self._maps({space}, cycle, {}), self._maps({space}, swap, {})
        for k, leaf in enumerate(self._tensors):
            index = None if cycled is None or swapped is None else _units(cycled[k], swapped[k], size)
            if index is None:
                self._spaces.fix(space)
                return
            for axis, positions in index.items():
                self._labels[leaf][axis] = (*self._labels[leaf].get(axis, ()), UnitIndex(space, positions))


def _subsets(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """All subsets, the smallest first; of too many items only the small ones."""
    most = len(items) if len(items) <= MOST_COMPANIONS else 2
    for count in range(most + 1):
        yield from combinations(items, count)


def _reordering(before: Tensor, after: Tensor) -> dict[int, Tensor] | None:
    """`{axis: order}` with `after == before.index_select(axis, order)`, empty where nothing moved; None otherwise."""
    if before.shape != after.shape:
        return None
    if _same(before, after):
        return {}
    for axis, length in enumerate(before.shape):
        if length > 1:
            order = torch.empty(length, dtype=torch.long)
            order[_keys(after, axis).argsort()] = _keys(before, axis).argsort()
            if _same(before.index_select(axis, order), after):
                return {axis: order}
    return None


def _keys(tensor: Tensor, axis: int) -> Tensor:
    """One number for each position of an axis, equal for equal slices: sorting them finds which slice went where."""
    rows = tensor.movedim(axis, 0).flatten(1).double() if tensor.dim() > 1 else tensor.double()[:, None]
    weights = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rows @ weights


def _same(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=ROUNDING.get(first.dtype, COARSE_ROUNDING), atol=1e-12)


def _units(cycled: dict[int, Tensor], swapped: dict[int, Tensor], size: int) -> dict[int, Tensor] | None:
    """Where the units are, from what the cycle and the swap moved: `{axis: (copies, n)}`; None where it is unclear.

    Of all units, only unit 0 is replaced by the same one (unit 1) under both: so every copy of unit 0 is found first,
    and the cycle leads from there through the others. Of two units, cycle and swap are the same, and one is chosen.
    """
    if not cycled and not swapped:
        return {}
    if set(cycled) != set(swapped):
        return None
    ((axis, shifted),) = cycled.items()  # `_reordering` returns one axis at most
    exchanged = swapped[axis]
    places = torch.arange(len(shifted))
    anchors = places[(shifted != places) & (shifted == exchanged)]  # the copies of unit 0
    if size == 2:
        anchors = anchors[anchors < shifted[anchors]]
    columns = [anchors]
    for _ in range(size - 1):
        columns.append(shifted[columns[-1]])
    index = torch.stack(columns, 1)
    moved = places[shifted != places]
    complete = len(anchors) and torch.equal(index.flatten().sort().values, moved)
    return {axis: index} if complete else None
