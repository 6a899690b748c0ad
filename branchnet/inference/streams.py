"""The branches of a network on parallel streams of a GPU: every node and head compiled alone, issued as a plan says.

The alternative to fusing equal nodes, for branches that leave parts of the GPU idle. What may run at the same time is
decided in `schedule`, which can be read and checked without a GPU; this module only issues it. **Neither run nor
measured on a GPU yet**: whether it gains anything there, and over which of the other ways, is not known. Each node is a
call of its own, which one graph of the whole network saves.

Three rules keep it correct. A stream waits for an event behind what it reads, where that was computed on another
stream. A tensor is marked as used by each stream that reads it, so that PyTorch's caching allocator, which reuses the
memory of a tensor as soon as Python lets go of it, does so only after those streams are done. The caller's stream waits
for all others at the end, so to the caller the call looks like any other.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.builder.network.module_structure import structure
from branchnet.builder.network.node import Node
from branchnet.errors import BuildError
from branchnet.inference.schedule import INPUTS, Schedule, make_schedule
from branchnet.inference.task_graphs import Outputs, prepared_input
from branchnet.inference.torch_compile import (
    CompileOptions,
    autocasting,
    compiled_apart,
    device_of,
    first_line,
    map_input,
    records_cuda_graphs,
)
from branchnet.stages import call
from branchnet.utils.installed_torch import torch_internals
from branchnet.utils.installed_torch.torch_internals import TorchDynamoException, pytree

Function = Callable[[Any], Any]


class Streams(Protocol):
    """The streams of a device, by number; 0 is the one that is current when the call begins."""

    def issuing_to(self, stream: int) -> AbstractContextManager[Any]:
        """Issue what runs inside to this stream."""

    def event_behind(self, stream: int) -> Any:
        """An event that happens when all that was issued to this stream so far is done."""

    def wait(self, stream: int, event: Any) -> None:
        """Let what is issued to this stream from now on begin after the event."""

    def uses(self, stream: int, value: Any) -> None:
        """Keep the memory of all tensors in `value` until what was issued to this stream so far is done."""


def run_schedule(schedule: Schedule, functions: Mapping[str, Function], x: Any, streams: Streams) -> Outputs:
    """Issue every step to its stream.

    Args:
        schedule: what runs where, in which order.
        functions: by id what computes a node or head from what it reads.
        x: the inputs.
        streams: the streams to issue to.

    Returns:
        the outputs by task, ready for the caller's stream.
    """
    results: dict[str, Any] = {INPUTS: x}
    events: dict[str, Any] = {}
    awaited = schedule.awaited
    if INPUTS in awaited:
        events[INPUTS] = streams.event_behind(0)
    for step in schedule.steps:
        if step.waits:
            streams.wait(step.stream, events[step.reads])
        with streams.issuing_to(step.stream):
            results[step.id] = functions[step.id](results[step.reads])
        if step.waits:
            streams.uses(step.stream, results[step.reads])
        if step.id in awaited:
            events[step.id] = streams.event_behind(step.stream)
    heads = [step for step in schedule.steps if step.is_head]
    for head in heads:
        if head.stream:
            streams.wait(0, events[head.id])
            streams.uses(0, results[head.id])
    return {task: results[head.id] for task, head in zip(schedule.tasks, heads, strict=True)}


class CudaStreams:
    """The current stream of a CUDA device, and others.

    Args:
        current: the stream that is current when the call begins: number 0.
        others: streams 1, 2, ...
    """

    def __init__(self, current: torch.cuda.Stream, others: Sequence[torch.cuda.Stream]) -> None:
        self._streams = (current, *others)

    def issuing_to(self, stream: int) -> AbstractContextManager[Any]:
        """See `Streams`."""
        return torch.cuda.stream(self._streams[stream]) if stream else contextlib.nullcontext()

    def event_behind(self, stream: int) -> torch.cuda.Event:
        """See `Streams`."""
        event = torch.cuda.Event()
        event.record(self._streams[stream])
        return event

    def wait(self, stream: int, event: torch.cuda.Event) -> None:
        """See `Streams`."""
        self._streams[stream].wait_event(event)

    def uses(self, stream: int, value: Any) -> None:
        """See `Streams`."""
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(self._streams[stream])


class StreamedNodes:
    """Runs the tasks of a branched network on parallel streams of a GPU.

    Nodes and heads are compiled each on its own, as full graphs; those of one structure share a graph.

    Args:
        branched: the network, on a CUDA device.
        options: how it is compiled.

    Attributes:
        eager_heads: tasks whose heads could not be compiled and are called eagerly.

    Raises:
        BuildError: a device without streams, or a mode that records CUDA graphs: those share one memory pool, which two
            that run at the same time would overwrite for each other.
    """

    def __init__(self, branched: BranchedNetwork, options: CompileOptions) -> None:
        self._branched = branched
        self._options = options
        self._schedules: dict[tuple[str, ...], Schedule] = {}
        self.forget()

    def forget(self) -> None:
        """Let go of what was compiled: the network is another one now, or on another device."""
        self.eager_heads: tuple[str, ...] = ()
        self._device = device_of(self._branched)
        check_streams(self._device, self._options.mode)
        self._streams = open_streams(next(self._branched.parameters()).device)
        self._shared: dict[Any, Callable[[nn.Module, Any], Any]] = {}
        self._made: dict[tuple[bool, ...], dict[str, Function]] = {}

    def run(self, subset: tuple[str, ...], modes: tuple[bool, ...], x: Input) -> Outputs:
        """Compute the outputs of the tasks in `subset`; `modes` are those that the network's modules are in."""
        if subset not in self._schedules:
            self._schedules[subset] = make_schedule(self._branched.tree, subset)
        inputs = prepared_input(x, self._options)
        return run_schedule(self._schedules[subset], self._functions(modes), inputs, self._streams(len(subset)))

    def _functions(self, modes: tuple[bool, ...]) -> dict[str, Function]:
        """What computes each node and each head, in these modes."""
        if modes not in self._made:
            self._made[modes] = {
                node.id: (self._head if node.is_head else self._node)(node) for node in self._branched.members()
            }
        return self._made[modes]

    def _node(self, member: Node) -> Function:
        node = member.module
        form = structure(node)
        if form not in self._shared:
            self._shared[form] = self._compiled_alone()
        compiled = self._shared[form]
        return lambda cut: compiled(node, _with_dynamic_batch(cut) if self._options.dynamic else cut)

    def _compiled_alone(self) -> Callable[[nn.Module, Any], Any]:
        options, device = self._options, self._device

        def run(node: nn.Module, cut: Any) -> Any:
            with autocasting(device, options.autocast):
                return call(node, cut)

        return compiled_apart(run, mode=options.mode, dynamic=None if options.dynamic else False, module_guards=False)

    def _head(self, member: Node) -> Function:
        compiled, head, (task,) = self._node(member), member.module, member.tasks

        def run(cut: Any) -> Any:
            if task not in self.eager_heads:
                try:
                    return compiled(cut)
                except TorchDynamoException as error:
                    self.eager_heads += (task,)
                    warnings.warn(
                        f"the head of {task!r} cannot be compiled and is called eagerly: {first_line(error)}",
                        stacklevel=2,
                    )
            with autocasting(self._device, self._options.autocast):
                return call(head, cut)

        return run


def check_streams(device: str, mode: str | None) -> None:
    """Refuse what cannot run on parallel streams.

    Args:
        device: the kind of device that the network is on.
        mode: torch.compile's mode.

    Raises:
        BuildError: a device without streams, or a mode that records CUDA graphs.
    """
    if records_cuda_graphs(mode):
        raise BuildError(
            f"streams=True and mode={mode!r}, which records CUDA graphs, exclude each other; expected one of them"
        )
    if device != "cuda":
        raise BuildError(f"streams=True, and the network is on {device!r}; expected one on a CUDA device")


def open_streams(device: torch.device) -> Callable[[int], Streams]:
    """Return a function that gives so many streams of a device, the current one first; it opens them when needed."""
    others: list[torch.cuda.Stream] = []

    def opened(count: int) -> Streams:
        while len(others) < count - 1:
            others.append(torch.cuda.Stream(device))
        return CudaStreams(torch.cuda.current_stream(device), others[: count - 1])

    return opened


def _with_dynamic_batch(cut: Any) -> Any:
    """Alias the tensors of a cut with the batch dimension, that of the first one, marked as one that may change."""
    leaves = [leaf for leaf in pytree.tree_leaves(cut) if isinstance(leaf, Tensor) and leaf.dim()]
    batch = leaves[0].shape[0] if leaves else 1

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch > 1:
            value = value.view_as(value)
            torch_internals.maybe_mark_dynamic(value, 0)
        return value

    return map_input(mark, cut)
