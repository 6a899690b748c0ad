"""Which permutations of its units leave a staged network's function unchanged: found by trying, operator by operator.

A *space* is a set of n interchangeable units: channels of a convolution, features of a linear layer, the residual
stream that several blocks add to. Permuting a space means permuting every axis that carries its units, in weights and
in features. A network keeps its function if every operator on the way either propagates the permutation or undoes
it.

That is not looked up by operator type but tried on random numbers of the right shapes: the cyclic shift and the swap of
the first two units generate all permutations, so an operator that propagates both propagates every one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.weights.operator_permutations import Operator
from branchnet.builder.weights.unit_spaces import Axes, Known, Spaces, UnitIndex, permuted, unit_indices
from branchnet.errors import BuildError
from branchnet.stages import Example, StagedNetwork, call
from branchnet.stages.interface import flat_example
from branchnet.stages.staged import Stage
from branchnet.utils.installed_torch.torch_internals import tree_leaves, tree_map
from branchnet.utils.modes import mode_of

ALLOWED_CHANGE = 1e-6
"""Of an output's largest value, in float64: rounding is at 1e-12 even in deep networks, a wrong permutation at 1."""


@dataclass(frozen=True)
class Symmetries:
    """The spaces of several networks of one structure.

    Attributes:
        sizes: for each space that can be permuted its number of units.
        origin_stages: for each such space the stage in which its units originate.
        tensors: for each parameter and buffer by (stage, name) the axes that carry units; a head's stage is its task.
        values: for each intermediate result by (stage, position in the stage's graph) its axes.
    """

    sizes: Mapping[int, int]
    origin_stages: Mapping[int, int]
    tensors: Mapping[tuple[int | str, str], Axes]
    values: Mapping[tuple[int, int], Axes]


def find_symmetries(networks: Mapping[str, StagedNetwork], example: Example) -> Symmetries:
    """Find the spaces of networks with equal stages, each with a head of its own.

    The stages of the first network are tried, and every head. What was found is proven on the first network, which must
    keep its outputs under random permutations of all spaces.

    Args:
        networks: staged networks, left as they are.
        example: a few inputs.

    Returns:
        the spaces, and the axes that carry them.

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
        cut, axes = run.trace(cut)
        values |= {(stage, place): found for place, found in run.values.items()}
    depth = len(first.stages)
    for network in networks.values():
        _, results = _Run(network.head, spaces, known, depth, axes).trace(cut)
        # The order of an output's channels is what users rely on: spaces that reach an output cannot be permuted.
        for carrier in (carrier for axes_of_result in results for carrier in unit_indices(axes_of_result)):
            spaces.fix(carrier.space)
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
    # Spaces that originate in a head (stage D) belong to one task alone: there is nothing to align them with.
    movable = [space for space in spaces.roots() if not spaces.fixed(space) and spaces.origins[space] < depth]

    def resolved(axes: Axes) -> Axes:
        roots = {a: tuple(UnitIndex(spaces.root(c.space), c.index) for c in carriers) for a, carriers in axes.items()}
        kept = {a: tuple(c for c in carriers if c.space in movable) for a, carriers in roots.items()}
        return {a: carriers for a, carriers in kept.items() if carriers}

    modules = _stages_and_heads(networks, next(iter(networks.values())))
    named = [(key, name, t) for key, module in modules for name, t in tensors_of(module).items()]
    tensors = {(key, name): resolved(known.get(id(tensor), {})) for key, name, tensor in named}
    return Symmetries(
        {space: spaces.sizes[space] for space in movable},
        {space: spaces.origins[space] for space in movable},
        {key: axes for key, axes in tensors.items() if axes},
        {key: axes for key, axes in ((key, resolved(axes)) for key, axes in values.items()) if axes},
    )


def _stages_and_heads(
    networks: Mapping[str, StagedNetwork], stages_of: StagedNetwork
) -> Iterator[tuple[int | str, nn.Module]]:
    """The stages of one network by number, and the heads of all by task."""
    yield from enumerate(stages_of.stages)
    for task, network in networks.items():
        yield task, network.head


def _check(task: str, network: StagedNetwork, found: Symmetries, example: Example) -> None:
    generator = torch.Generator().manual_seed(0)
    orders = {space: torch.randperm(size, generator=generator) for space, size in found.sizes.items()}
    network = network.double()
    moved = copy.deepcopy(network)
    inputs = tree_map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
    with torch.no_grad(), mode_of(network, training=False), mode_of(moved, training=False):
        done: set[int] = set()
        for key, module in _stages_and_heads({task: moved}, moved):
            for name, tensor in tensors_of(module).items():
                if id(tensor) not in done:
                    tensor.copy_(permuted(tensor, found.tensors.get((key, name), {}), orders))
                    done.add(id(tensor))
        pairs = zip(tree_leaves(call(network, inputs)), tree_leaves(call(moved, inputs)), strict=True)
    changes = [
        float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    if not max(changes, default=0.0) <= ALLOWED_CHANGE:  # so written, NaN is refused as well
        raise BuildError(
            f"the permutations found for {task!r} change its outputs by {max(changes):.1e}, expected at most "
            f"{ALLOWED_CHANGE:.0e}: it holds an operator that treats units differently only on some inputs; "
            "use init='donor'"
        )


class _Run(fx.Interpreter):
    """Runs one stage or head of a network and labels the axes of everything in it."""

    def __init__(self, module: nn.Module, spaces: Spaces, known: Known, stage: int, inputs: Sequence[Axes]) -> None:
        super().__init__(module, graph=cast(Stage, module).graph)
        self.values: dict[int, Axes] = {}
        self._context = (spaces, known, stage)
        self._places = {node: place for place, node in enumerate(self.graph.nodes)}
        self._inputs = iter(inputs)
        self._axes: dict[fx.Node, list[Axes]] = {}
        self._results: list[Axes] = []

    def trace(self, cut: Sequence[Any]) -> tuple[tuple[Any, ...], list[Axes]]:
        """Return what the module returns for the tensors of a cut, flat, and the axes of each of those."""
        with torch.no_grad(), mode_of(self.module, training=False):
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
