"""One full graph for each set of tasks that is asked for, with the heads that cannot be in it called after it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.builder.network.separate_networks import SeparateNetworks
from branchnet.inference.fusion import FusedNetwork
from branchnet.inference.inference_transforms import as_prepared
from branchnet.inference.regions import with_regions
from branchnet.inference.torch_compile import (
    UNCOMPILED,
    CompileOptions,
    autocasting,
    compiled_apart,
    device_of,
    first_line,
    map_input,
)
from branchnet.utils.installed_torch import torch_internals
from branchnet.utils.installed_torch.torch_internals import pytree

Outputs = dict[str, Any]
_COMPILING = threading.RLock()  # one for all networks: locks can be neither copied nor pickled
Network = BranchedNetwork | FusedNetwork | SeparateNetworks
Graph = Callable[[Input], tuple[Outputs, dict[str, Any]]]
"""Computes the outputs by task, and what the heads that are called eagerly take."""


class TaskGraphs:
    """Runs a network as one compiled graph for each set of tasks, module modes and, unless dynamic, input shapes.

    Attributes:
        eager_heads: tasks whose heads could not be compiled and are called eagerly after the graph.
    """

    def __init__(self, network: Network, options: CompileOptions) -> None:
        self._network = network
        self._options = options
        self.forget()

    def forget(self) -> None:
        """Let go of what was compiled: the network is another one now, or on another device."""
        self.eager_heads: tuple[str, ...] = ()
        self._device = device_of(self._network)
        self._graphs: dict[Any, Graph] = {}

    def run(self, subset: tuple[str, ...], modes: tuple[bool, ...], x: Input) -> Outputs:
        """Compute the outputs of the tasks in `subset`; `modes` are those that the network's modules are in."""
        if self._options.dynamic:
            x = with_dynamic_batch(x, batch_of(x))
        outputs, cuts = self._run_graph(subset, modes, x)
        if not cuts:
            return outputs
        with autocasting(self._device, self._options.autocast):
            outputs |= {task: self._heads[task](*cut) for task, cut in cuts.items()}
        return {task: outputs[task] for task in subset}

    def _run_graph(self, subset: tuple[str, ...], modes: tuple[bool, ...], x: Input) -> tuple[Outputs, dict[str, Any]]:
        key = (subset, modes, () if self._options.dynamic else _shapes(x))
        with nullcontext() if key in self._graphs else _COMPILING:  # others wait for what one thread compiles
            graph, known = self._graphs.get(key) or self._compile(subset), self.eager_heads
            try:
                result = graph(x)
            except UNCOMPILED as error:
                with _COMPILING:
                    if self.eager_heads == known:  # else another thread has excluded them meanwhile
                        self._exclude_heads(subset, x, error)
                    graph = self._compile(subset)
                    result = graph(x)
            self._graphs[key] = graph
            return result

    def _compile(self, subset: tuple[str, ...]) -> Graph:
        network, options, device = self._network, self._options, self._device
        if options.regions and isinstance(network, BranchedNetwork):
            network = with_regions(network)
        eager = tuple(task for task in subset if task in self.eager_heads)
        heads = self._heads

        def run(x: Input) -> tuple[Outputs, dict[str, Any]]:
            x = prepared_input(x, options)
            with autocasting(device, options.autocast):
                if not eager:
                    return network(x, tasks=subset), {}
                last = network.trunk(x, tasks=subset)  # type: ignore[operator]
                outputs = {task: heads[task](*cut) for task, cut in last.items() if task not in eager}
                return outputs, {task: last[task] for task in eager}

        return compiled_apart(run, mode=options.mode, dynamic=None if options.dynamic else False, module_guards=False)

    def _exclude_heads(self, subset: tuple[str, ...], x: Input, error: Exception) -> None:
        """Find the heads that do not compile on their own; raise `error` where there are none."""
        if isinstance(self._network, SeparateNetworks):
            raise error
        with autocasting(self._device, self._options.autocast):
            cuts = self._network.trunk(prepared_input(x, self._options), tasks=subset)
            if self._options.dynamic:
                cuts = {task: with_dynamic_batch(cut, batch_of(x)) for task, cut in cuts.items()}
            suspects = [task for task in subset if task not in self.eager_heads]
            for backend in ("eager", "inductor"):  # most heads that do not compile are no full graph to begin with
                refusals = {task: _refusal(self._heads[task], cuts[task], backend) for task in suspects}
                if problems := {task: refusal for task, refusal in refusals.items() if refusal}:
                    break
        if not problems:
            raise error
        for task in problems:
            warnings.warn(
                f"the head of {task!r} cannot be compiled and is called eagerly after the graph: {problems[task]}",
                stacklevel=6,
            )
        self.eager_heads += tuple(problems)

    @property
    def _heads(self) -> dict[str, nn.Module]:
        heads: Iterable[nn.Module] = [] if isinstance(self._network, SeparateNetworks) else self._network.heads
        return dict(zip(self._network.tasks, heads, strict=False))


def prepared_input(x: Input, options: CompileOptions) -> Input:
    """The input in the type and memory format that the weights were given."""
    return map_input(lambda value: as_prepared(value, cast=options.cast, channels_last=options.channels_last), x)


def batch_of(x: Input) -> int:
    """The batch size: the first dimension of the first tensor that has one."""
    leaves = list(x.values()) if isinstance(x, Mapping) else pytree.tree_leaves(x)
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)


def with_dynamic_batch(x: Any, batch: int) -> Any:
    """Alias the tensors with their batch dimension marked dynamic, where there is more than one sample."""

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch > 1:
            value = value.view_as(value)
            torch_internals.mark_dynamic(value, 0)
        return value

    return map_input(mark, x)


def _shapes(x: Input) -> tuple[Any, ...]:
    """What decides which graph of fixed shapes an input needs."""
    leaves = list(x.items()) if isinstance(x, Mapping) else list(enumerate(pytree.tree_leaves(x)))
    return tuple((key, tuple(value.shape), value.dtype) for key, value in leaves if isinstance(value, Tensor))


def _refusal(head: nn.Module, cut: tuple[Any, ...], backend: str) -> str:
    """Why a head cannot be compiled as one full graph; empty if it can."""
    try:
        compiled_apart(lambda *values: head(*values), backend=backend)(*cut)
    except UNCOMPILED as error:
        return first_line(error)
    return ""
