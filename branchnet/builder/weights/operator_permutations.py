"""Which permutations one operator hands on: tried on random numbers, see `symmetries`.

Parameters join the permutation of the features that they meet, or found a space of their own. A space that some
operator cannot hand on (the groups of a group normalisation, attention heads) is fixed: its units keep their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

MOST_COMPANIONS = 7
ROUNDING = {torch.float64: 1e-10}
COARSE_ROUNDING = 1e-5


@dataclass(frozen=True)
class Part:
    """Positions of an axis that carry the units of a space: `index` (copies, n), unit u at each of `index[:, u]`."""

    space: int
    index: Tensor


Axes = Mapping[int, tuple[Part, ...]]
"""For each axis of a tensor that carries units, where it carries which."""

Known = dict[int, dict[int, tuple[Part, ...]]]
"""The axes of parameters and buffers by identity."""


def permuted(tensor: Tensor, axes: Axes, permutations: Mapping[int, Tensor]) -> Tensor:
    """The tensor with unit u of every space replaced by its unit `permutations[space][u]`; other spaces stay."""
    for axis, parts in axes.items():
        order = torch.arange(tensor.shape[axis], device=tensor.device)
        for part in parts:
            if part.space in permutations:
                index = part.index.to(tensor.device)
                order[index] = index[:, permutations[part.space].to(tensor.device)]
        tensor = tensor.index_select(axis, order)
    return tensor


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by name; a tensor of several names under each."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return dict(named)


def parts_of(axes: Axes) -> Iterator[Part]:
    """The parts of all axes."""
    for parts in axes.values():
        yield from parts


class Spaces:
    """Spaces that may turn out to be one (a residual sum), or not to be permutable."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.births: list[int] = []
        self._parents: list[int] = []
        self._fixed: set[int] = set()

    def new(self, size: int, stage: int) -> int:
        """Found a space of `size` units, born in `stage`."""
        self.sizes.append(size)
        self.births.append(stage)
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def root(self, space: int) -> int:
        """The number under which a space is known now."""
        while self._parents[space] != space:
            space = self._parents[space]
        return space

    def join(self, first: int, second: int) -> None:
        """Say that two spaces are one."""
        first, second = self.root(first), self.root(second)
        self._parents[second] = first
        self.births[first] = min(self.births[first], self.births[second])
        if second in self._fixed:
            self._fixed.add(first)

    def fix(self, space: int) -> None:
        """Say that a space cannot be permuted."""
        self._fixed.add(self.root(space))

    def fixed(self, space: int) -> bool:
        """Whether a space cannot be permuted."""
        return self.root(space) in self._fixed

    def roots(self) -> list[int]:
        """One number for each space."""
        return [space for space in range(len(self.sizes)) if self.root(space) == space]


@dataclass
class _Slot:
    """One tensor that an operator reads: random numbers in its shape, the axes that carry units, and those that may."""

    value: Tensor
    axes: dict[int, tuple[Part, ...]]
    open: set[int] = field(default_factory=set)


class Operator:
    """One operator on random numbers: which permutations of what it reads it hands on.

    Args:
        node: the operator in its graph.
        read: what each node that it reads gave, with the axes of each of its leaves.
        result: what it returned for those.
        module: the module that it calls, or None.
        known: the axes of parameters that were met before; those that are met here are added.
        stage: the stage that it is in, where a new space is born.
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
        self._labels: list[dict[int, tuple[Part, ...]]] = [{} for _ in leaves]

    def label(self) -> list[Axes]:
        """Label the axes of the results, and those of parameters that are met here for the first time."""
        self._before: list[Tensor] | None
        try:
            self._before = self._evaluate([slot.value for slot in self._slots])
        except Exception:  # an operator that cannot be run on random numbers hands on nothing
            self._before = None
        for space in dict.fromkeys(self._spaces.root(p.space) for slot in self._slots for p in parts_of(slot.axes)):
            if self._spaces.root(space) == space and not self._spaces.fixed(space) and not self._carry(space):
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
        operator saturates or vanishes, every root exists, and no two units look alike.
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
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            if self._module is not None:
                state = {name: next(given) for name, _ in self._held}
                result = functional_call(self._module, state, args, kwargs)
            elif self._node.op == "call_method":
                result = getattr(args[0], str(self._node.target))(*args[1:], **kwargs)
            else:
                result = self._node.target(*args, **kwargs)  # type: ignore[operator]
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def _carry(self, space: int) -> bool:
        """Hand a space on, together with the fewest open axes and other spaces that have to move with it."""
        if self._before is None:
            return False
        templates = {
            slot.value.shape[axis]: parts
            for slot in reversed(self._slots)
            for axis, parts in slot.axes.items()
            if any(self._spaces.root(part.space) == space for part in parts)
        }
        size = self._spaces.sizes[space]
        others: list[Any] = [
            (i, axis)
            for i, slot in enumerate(self._slots)
            for axis in sorted(slot.open)
            if slot.value.shape[axis] in templates
        ]
        present = dict.fromkeys(self._spaces.root(p.space) for slot in self._slots for p in parts_of(slot.axes))
        others += [o for o in present if o != space and self._spaces.sizes[o] == size and not self._spaces.fixed(o)]
        for chosen in _subsets(others):
            joined = {space, *(other for other in chosen if isinstance(other, int))}
            adopting = [other for other in chosen if not isinstance(other, int)]
            extra = {(i, a): templates[self._slots[i].value.shape[a]] for i, a in adopting}
            if self._try(joined, size, extra):
                for other in joined - {space}:
                    self._spaces.join(space, other)
                self._commit(self._spaces.root(space), extra)
                return True
        return False

    def _found_spaces(self) -> None:
        """Let the axes of new parameters that nothing has claimed move by themselves where the operator allows it."""
        waiting = [(i, axis) for i, slot in enumerate(self._slots) for axis in sorted(slot.open)]
        while waiting:
            lead = waiting.pop(0)
            size = self._slots[lead[0]].value.shape[lead[1]]
            peers = [o for o in waiting if self._slots[o[0]].value.shape[o[1]] == size]
            for chosen in _subsets(peers):
                space = self._spaces.new(size, self._stage)
                extra = {key: (Part(space, torch.arange(size)[None]),) for key in (lead, *chosen)}
                if self._try({space}, size, extra) == "handed on":
                    self._commit(space, extra)
                    waiting = [key for key in waiting if key not in chosen]
                    break
                self._spaces.fix(space)

    def _try(self, joined: set[int], size: int, extra: Mapping[tuple[int, int], tuple[Part, ...]]) -> str:
        """Whether one random permutation is "handed on" or "undone"; empty where it is neither."""
        order = torch.randperm(size, generator=self._generator)
        maps = self._maps(joined, order.roll(1) if torch.equal(order, torch.arange(size)) else order, extra)
        return "" if maps is None else "handed on" if any(maps) else "undone"

    def _maps(
        self, joined: set[int], order: Tensor, extra: Mapping[tuple[int, int], tuple[Part, ...]]
    ) -> list[dict[int, Tensor]] | None:
        """For each result the axis that the permutation moves and how; None where a result changes otherwise."""
        values = []
        for i, slot in enumerate(self._slots):
            axes = slot.axes | {axis: parts for (k, axis), parts in extra.items() if k == i}
            spaces = {part.space: order for part in parts_of(axes) if self._spaces.root(part.space) in joined}
            values.append(permuted(slot.value, axes, spaces))
        assert self._before is not None
        try:
            after = self._evaluate(values)
        except Exception:  # e.g. indices that a permuted table does not hold
            return None
        maps = [_reordering(one, other) for one, other in zip(self._before, after, strict=True)]
        return None if any(found is None for found in maps) else maps  # type: ignore[return-value]

    def _commit(self, space: int, extra: Mapping[tuple[int, int], tuple[Part, ...]]) -> None:
        for (i, axis), parts in extra.items():
            self._slots[i].axes[axis] = parts
            self._slots[i].open.discard(axis)
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
                self._labels[leaf][axis] = (*self._labels[leaf].get(axis, ()), Part(space, positions))


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
    rows = tensor.movedim(axis, 0).flatten(1).double() if tensor.dim() > 1 else tensor.double()[:, None]
    weights = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rows @ weights


def _same(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=ROUNDING.get(first.dtype, COARSE_ROUNDING), atol=1e-12)


def _units(cycled: dict[int, Tensor], swapped: dict[int, Tensor], size: int) -> dict[int, Tensor] | None:
    """Where the units are, from what the cycle and the swap moved: `{axis: (copies, n)}`; None where it is unclear."""
    if not cycled and not swapped:
        return {}
    if set(cycled) != set(swapped):
        return None
    ((axis, shifted),) = cycled.items()
    exchanged = swapped[axis]
    places = torch.arange(len(shifted))
    anchors = places[(shifted != places) & (shifted == exchanged)]
    if size == 2:
        anchors = anchors[anchors < shifted[anchors]]
    columns = [anchors]
    for _ in range(size - 1):
        columns.append(shifted[columns[-1]])
    index = torch.stack(columns, 1)
    moved = places[shifted != places]
    complete = len(anchors) and torch.equal(index.flatten().sort().values, moved)
    return {axis: index} if complete else None
