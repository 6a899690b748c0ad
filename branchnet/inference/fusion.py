"""Sibling fusion: structurally equal nodes of one stage run as one batched computation over their stacked weights.

Siblings take the same cut, cousins take the cuts of different parents; `torch.func.vmap` turns their convolutions into
grouped ones and their linear layers and attention into batched matrix products (the attention kernel of CPUs has no
such form and runs member by member). Whether that is faster depends on the device, so
`branchnet.compile(..., fuse="auto")` measures every stage. Results equal the unfused ones up to rounding:
within 1e-5 of an output's largest value in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input, check_input, one_input
from branchnet.builder.network.module_structure import copied_with, on_meta, state_of, structure
from branchnet.builder.network.node import head_id, node_id
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.errors import BuildError
from branchnet.stages import call

if TYPE_CHECKING:
    from branchnet.stages import Interface

Cut = tuple[Any, ...]


class FusedNodes(nn.Module):
    """G structurally equal modules whose weights are stacked along a new first dimension and that run together.

    Parameters and buffers keep their names with `/` for `.`, which names of parameters must not hold, and have the
    shape `(G, *shape)`.

    Args:
        modules: the G modules; their weights are copied.

    Attributes:
        count: G.

    Raises:
        BuildError: modules that differ in structure.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if len({structure(module) for module in modules}) != 1:
            raise BuildError("modules to fuse differ in layers, shapes or types; expected modules of one structure")
        self.count = len(modules)
        states = [state_of(module) for module in modules]
        for name, first in states[0].items():
            stacked = torch.stack([state[name].detach() for state in states])
            if isinstance(first, nn.Parameter):
                self.register_parameter(_key(name), nn.Parameter(stacked, requires_grad=first.requires_grad))
            else:
                self.register_buffer(_key(name), stacked)
        self._names = tuple(states[0])
        self._templates = [on_meta(modules[0])]  # in a list: its empty tensors are no state of ours

    def forward(self, x: Input) -> Cut:
        """Run all members on the same input.

        Args:
            x: the input of every member.

        Returns:
            what they return, each tensor with a first dimension G.

        Raises:
            BuildError: members that return other values than tensors.
        """
        return vmap(lambda state: _results(functional_call(self._templates[0], state, *_arguments(x))))(self._state())

    def on_stacked(self, cut: Cut) -> Cut:
        """Return what each member returns for its own input.

        Args:
            cut: each tensor (G, ...), of which member g takes `tensor[g]`; other values are given to every member.

        Returns:
            each tensor with a first dimension G.

        Raises:
            BuildError: members that return other values than tensors.
        """
        tensors = [value for value in cut if isinstance(value, Tensor)]

        def one(state: Mapping[str, Tensor], own_tensors: list[Tensor]) -> Cut:
            rest = iter(own_tensors)
            own = tuple(next(rest) if isinstance(value, Tensor) else value for value in cut)
            return _results(functional_call(self._templates[0], dict(state), own))

        return vmap(one)(self._state(), tensors)

    def member(self, index: int, x: Input) -> Any:
        """Run one member alone.

        Args:
            index: number of the member.
            x: its input.

        Returns:
            what it returns.
        """
        state = {name: tensor[index] for name, tensor in self._state().items()}
        return functional_call(self._templates[0], state, *_arguments(x))

    def unstack(self) -> list[nn.Module]:
        """Undo the fusion.

        Returns:
            the members as modules of their own, with copies of their weights.
        """
        states = [self.member_state(index) for index in range(self.count)]
        return [copied_with(self._templates[0], {n: t.clone() for n, t in state.items()}) for state in states]

    def member_state(self, index: int) -> dict[str, Tensor]:
        """Look up one member's parameters and buffers.

        Args:
            index: number of the member.

        Returns:
            tensors by their names in the member, as views of the stacked ones.
        """
        return {name: stacked[index].detach() for name, stacked in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        return {name: getattr(self, _key(name)) for name in self._names}


class FusedNetwork(nn.Module):
    """A branched network in which the equal nodes of some stages are fused; called like the network itself.

    It holds copies of the weights. Where only some tasks of fused nodes are asked for, their nodes run one by one.

    Args:
        branched: the network, in evaluation mode: BatchNorm under `vmap` cannot update its running statistics.
        stages: the numbers of the stages whose equal nodes are fused.

    Attributes:
        tree: which tasks share which stage.
        groups: for each stage the clusters that run together, as tuples of their numbers; a cluster alone is not fused.

    Raises:
        BuildError: a network in training mode.
    """

    takes_inputs_as_one = True

    def __init__(self, branched: BranchedNetwork, stages: Iterable[int]) -> None:
        super().__init__()
        if branched.training:
            raise BuildError(
                "the network is in training mode; expected evaluation mode to fuse nodes; call branched.eval() first"
            )
        self.tree = branched.tree
        chosen = set(stages)
        rows = [list(branched.nodes[stage]) for stage in range(self.tree.depth)]  # type: ignore[call-overload]
        self.groups = tuple(
            groups_of(row) if stage in chosen else tuple((k,) for k in range(len(row)))
            for stage, row in enumerate(rows)
        )
        self.nodes = nn.ModuleList(
            nn.ModuleList(_joined([row[k] for k in group]) for group in groups)
            for row, groups in zip(rows, self.groups, strict=True)
        )
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in branched.heads)
        self._clusters = branched.tree.labels()
        self._skeletons = [on_meta(branched)]  # in a list, so that it is not registered as a module
        self.eval()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the heads."""
        return tuple(self.tree.tasks)

    @property
    def skeleton(self) -> BranchedNetwork:
        """The network that was fused, without weights."""
        return self._skeletons[0]

    @property
    def interface(self) -> Interface:
        """Shapes and types of the inputs."""
        return self._skeletons[0].interface

    def forward(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`, see `BranchedNetwork.forward`.

        Args:
            *inputs: as of `BranchedNetwork.forward`.
            tasks: the tasks wanted, all by default.
            **named: as of `BranchedNetwork.forward`.

        Returns:
            a dictionary of outputs by task, in task order.

        Raises:
            BuildError: an unknown task, or none; no input, or inputs by position as well as by name.
        """
        x, tasks = one_input(inputs, tasks, named, self.interface)
        if not torch.compiler.is_compiling():  # Dynamo cannot trace the check into one graph
            check_input(x, self.interface)
        last = self.trunk(x, tasks)
        return {task: head(*last[task]) for task, head in zip(self.tasks, self.heads, strict=True) if task in last}

    def trunk(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, Cut]:
        """Compute what the heads of `tasks` take, see `BranchedNetwork.trunk`.

        Args:
            x: what a single-task network takes.
            tasks: the tasks wanted, all by default.

        Returns:
            for each task, in task order, the values that cross the last location.
        """
        wanted = [self.tasks.index(task) for task in wanted_tasks(tasks, self.tasks)]
        before: dict[int, _Result] = {}
        for stage, labels in enumerate(self._clusters):
            parents = {labels[task]: self._clusters[stage - 1][task] if stage else -1 for task in wanted}
            results: dict[int, _Result] = {}
            for group, module in self._units(stage):
                results |= _run(module, group, parents, before, x)
            before = results
        return {self.tasks[task]: before[self._clusters[-1][task]].cut() for task in wanted}

    def unfuse(self) -> BranchedNetwork:
        """Undo the fusion.

        Returns:
            the branched network with every node a module of its own, with copies of these weights.
        """
        state: dict[str, Tensor] = {}
        for stage in range(self.tree.depth):
            for group, module in self._units(stage):
                for row, k in enumerate(group):
                    own = module.member_state(row) if isinstance(module, FusedNodes) else state_of(module)
                    state |= {f"{node_id(stage, k)}.{name}": tensor for name, tensor in own.items()}
        for i, head in enumerate(self.heads):
            state |= {f"{head_id(i)}.{name}": tensor for name, tensor in state_of(head).items()}
        return copied_with(self._skeletons[0], {name: t.detach().clone() for name, t in state.items()}).eval()

    def _units(self, stage: int) -> Iterator[tuple[tuple[int, ...], nn.Module]]:
        yield from zip(self.groups[stage], self.nodes[stage], strict=True)  # type: ignore[call-overload]


def _joined(nodes: Sequence[nn.Module]) -> nn.Module:
    return FusedNodes(nodes) if len(nodes) > 1 else copy.deepcopy(nodes[0])


def _run(
    module: nn.Module, group: tuple[int, ...], parents: Mapping[int, int], before: Mapping[int, _Result], x: Input
) -> dict[int, _Result]:
    """The cuts of those clusters of a group that are wanted: the keys of `parents`."""
    sources = {k: before[parents[k]].cut() if parents[k] >= 0 else x for k in group if k in parents}
    if not isinstance(module, FusedNodes):
        return {k: _Result(call(module, source)) for k, source in sources.items()}
    if len(sources) < len(group):
        return {k: _Result(module.member(group.index(k), source)) for k, source in sources.items()}
    if len({parents[k] for k in group}) == 1:
        stacked = module(sources[group[0]])
    else:
        stacked = module.on_stacked(_stacked([before[parents[k]] for k in group]))
    return {k: _Result(stacked, row, len(group)) for row, k in enumerate(group)}


class _Result:
    """The cut that a node returned, or one row of the stacked cuts that fused nodes returned."""

    def __init__(self, values: Cut, row: int | None = None, count: int = 0) -> None:
        self.values, self.row, self.count = values, row, count

    def cut(self) -> Cut:
        if self.row is None:
            return self.values
        return tuple(value[self.row] if isinstance(value, Tensor) else value for value in self.values)


def groups_of(nodes: Iterable[nn.Module]) -> tuple[tuple[int, ...], ...]:
    """Group the numbers of the nodes: those with the same structure, and weights to stack, are together.

    Args:
        nodes: the nodes of one stage.
    """
    groups: dict[Any, list[int]] = {}
    for k, node in enumerate(nodes):
        stateless = next(node.parameters(), None) is None
        groups.setdefault(k if stateless else structure(node), []).append(k)
    return tuple(tuple(group) for group in groups.values())


def _stacked(parents: Sequence[_Result]) -> Cut:
    """The parents' cuts stacked; as they are where they are the rows of one stack, in order."""
    first = parents[0]
    if first.count == len(parents) and all(
        parent.values is first.values and parent.row == row for row, parent in enumerate(parents)
    ):
        return first.values
    cuts = [parent.cut() for parent in parents]
    return tuple(
        torch.stack(list(values)) if isinstance(values[0], Tensor) else values[0] for values in zip(*cuts, strict=True)
    )


def _arguments(x: Input) -> tuple[Any, ...]:
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,),)


def _results(cut: Cut) -> Cut:
    if not all(isinstance(value, Tensor) for value in cut):
        kinds = sorted({type(value).__name__ for value in cut if not isinstance(value, Tensor)})
        raise BuildError(f"nodes to fuse return {kinds}; expected tensors alone, which can be stacked; use fuse=False")
    return cut


def _key(name: str) -> str:
    return name.replace(".", "/")
