"""Which permutations of its units leave a staged network's function unchanged: found by trying, operator by operator.

A *space* is a set of n interchangeable units: channels of a convolution, features of a linear layer, the residual
stream that several blocks add to. Permuting a space means permuting every axis that carries its units, in weights and
in features. A network keeps its function if every operator on the way either hands the permutation on or undoes it.

That is not looked up by operator type but tried on random numbers of the right shapes: the cyclic shift and the swap of
the first two units generate all permutations, so an operator that hands on both hands on every one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from branchnet.builder.weights.operator_permutations import (
    Axes,
    Known,
    Operator,
    Part,
    Spaces,
    parts_of,
    permuted,
    tensors_of,
)
from branchnet.errors import BuildError
from branchnet.stages import Example, StagedNetwork, call
from branchnet.stages.interface import flat_example
from branchnet.stages.staged import Stage
from branchnet.utils.modes import mode_of

ALLOWED_CHANGE = 1e-6


@dataclass(frozen=True)
class Symmetries:
    """The spaces of several networks of one structure.

    Attributes:
        sizes: for each space that can be permuted its number of units.
        births: for each such space the stage in which its units are made.
        tensors: for each parameter and buffer by (stage, name) the axes that carry units; a head's stage is its task.
        values: for each intermediate result by (stage, position in the stage's graph) its axes.
    """

    sizes: Mapping[int, int]
    births: Mapping[int, int]
    tensors: Mapping[tuple[int | str, str], Axes]
    values: Mapping[tuple[int, int], Axes]


def find_symmetries(networks: Mapping[str, StagedNetwork], example: Example) -> Symmetries:
    """Find the spaces of networks with equal stages, each with a head of its own.

    The stages of the first network are tried, and every head. What was found is proven on the first network, which must
    keep its outputs under random permutations of all spaces.

    Args:
        networks: staged networks, left as they are.
        example: a few inputs.

    Raises:
        BuildError: the permutations that were found change the network's outputs.
    """
    networks = {task: copy.deepcopy(network).cpu() for task, network in networks.items()}
    example = tree_map(lambda tensor: tensor.cpu(), example)
    spaces, known, values = Spaces(), Known(), dict[tuple[int, int], Axes]()
    task, first = next(iter(networks.items()))
    cut: Sequence[Any] = flat_example(example)
    axes: list[Axes] = [{} for _ in cut]
    for stage, module in enumerate(first.stages):
        run = _Run(module, spaces, known, stage, axes)
        cut, axes = run.follow(cut)
        values |= {(stage, place): found for place, found in run.values.items()}
    depth = len(first.stages)
    for network in networks.values():
        _, results = _Run(network.head, spaces, known, depth, axes).follow(cut)
        for part in (part for result in results for part in parts_of(result)):
            spaces.fix(part.space)
    found = _resolved(networks, spaces, known, values, depth)
    _check(task, first, found, example)
    return found


def _resolved(
    networks: Mapping[str, StagedNetwork],
    spaces: Spaces,
    known: Known,
    values: Mapping[tuple[int, int], Axes],
    depth: int,
) -> Symmetries:
    """What was found, without the spaces that turned out to be fixed and under one number for those that are one."""
    movable = [space for space in spaces.roots() if not spaces.fixed(space) and spaces.births[space] < depth]

    def resolved(axes: Axes) -> Axes:
        moved = {a: tuple(Part(spaces.root(p.space), p.index) for p in parts) for a, parts in axes.items()}
        kept = {a: tuple(p for p in parts if p.space in movable) for a, parts in moved.items()}
        return {a: parts for a, parts in kept.items() if parts}

    pieces = _pieces(networks, next(iter(networks.values())))
    named = [(key, name, t) for key, piece in pieces for name, t in tensors_of(piece).items()]
    tensors = {(key, name): resolved(known.get(id(tensor), {})) for key, name, tensor in named}
    return Symmetries(
        {space: spaces.sizes[space] for space in movable},
        {space: spaces.births[space] for space in movable},
        {key: axes for key, axes in tensors.items() if axes},
        {key: axes for key, axes in ((key, resolved(axes)) for key, axes in values.items()) if axes},
    )


def _pieces(networks: Mapping[str, StagedNetwork], stages_of: StagedNetwork) -> Iterator[tuple[int | str, nn.Module]]:
    yield from enumerate(stages_of.stages)
    for task, network in networks.items():
        yield task, network.head


def _check(task: str, network: StagedNetwork, found: Symmetries, example: Example) -> None:
    generator = torch.Generator().manual_seed(0)
    orders = {space: torch.randperm(size, generator=generator) for space, size in found.sizes.items()}
    network = network.double()
    moved = copy.deepcopy(network)
    inputs = tree_map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
    with torch.no_grad(), mode_of(network), mode_of(moved):
        done: set[int] = set()
        for key, piece in _pieces({task: moved}, moved):
            for name, tensor in tensors_of(piece).items():
                if id(tensor) not in done:
                    tensor.copy_(permuted(tensor, found.tensors.get((key, name), {}), orders))
                    done.add(id(tensor))
        pairs = zip(tree_leaves(call(network, inputs)), tree_leaves(call(moved, inputs)), strict=True)
    changes = [
        float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    if not max(changes, default=0.0) <= ALLOWED_CHANGE:
        raise BuildError(
            f"the permutations found for {task!r} change its outputs by {max(changes):.1e}: it holds an operator that "
            "treats units differently only on some inputs; use init='donor'"
        )


class _Run(fx.Interpreter):
    """Runs one piece of a network and labels the axes of everything in it."""

    def __init__(self, module: nn.Module, spaces: Spaces, known: Known, stage: int, inputs: Sequence[Axes]) -> None:
        super().__init__(module, graph=cast(Stage, module).graph)
        self.values: dict[int, Axes] = {}
        self._context = (spaces, known, stage)
        self._places = {node: place for place, node in enumerate(self.graph.nodes)}
        self._inputs = iter(inputs)
        self._axes: dict[fx.Node, list[Axes]] = {}
        self._results: list[Axes] = []

    def follow(self, cut: Sequence[Any]) -> tuple[tuple[Any, ...], list[Axes]]:
        """What the piece returns for the tensors of a cut, flat, and the axes of each of those."""
        with torch.no_grad(), mode_of(self.module):
            result = self.run(*cut)
        return tuple(tree_leaves(result)), self._results

    def run_node(self, n: fx.Node) -> Any:
        """Run the node as it is, then find out what it does to permutations."""
        if n.op == "output":
            returned = tree_leaves(n.args[0], is_leaf=lambda leaf: isinstance(leaf, fx.Node))
            self._results = [axes for leaf in returned for axes in self._axes.get(leaf, [{}])]
            return super().run_node(n)
        read = {node: (self.env[node], self._axes[node]) for node in n.all_input_nodes}
        result = super().run_node(n)
        if n.op == "placeholder":
            self._axes[n] = [next(self._inputs)]
        elif n.op == "get_attr":
            self._axes[n] = [self._context[1].get(id(leaf), {}) for leaf in tree_leaves(result)]
        else:
            module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
            self._axes[n] = Operator(n, read, result, module, *self._context).label()
            if isinstance(result, Tensor) and result.is_floating_point():
                self.values[self._places[n]] = self._axes[n][0]
        return result
