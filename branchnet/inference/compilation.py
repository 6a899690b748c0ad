"""torch.compile for branched networks: one full graph for each set of tasks that is asked for."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from torch.utils import _pytree as pytree

from branchnet.builder.network.branched_network import BranchedNetwork, wanted_tasks
from branchnet.builder.network.call_inputs import Input, check_input, unlike
from branchnet.builder.network.separate_networks import SeparateNetworks
from branchnet.errors import BuildError
from branchnet.inference.change_detection import Watch
from branchnet.inference.fusion import FusedNetwork
from branchnet.inference.fusion_choice import faster_fused
from branchnet.inference.inference_transforms import as_prepared, prepare
from branchnet.inference.regions import with_regions
from branchnet.inference.torch_compile import (
    autocasting,
    compiled_apart,
    compiler_problem,
    device_of,
    first_line,
    map_input,
)

Outputs = dict[str, Any]
Network = BranchedNetwork | FusedNetwork | SeparateNetworks
UNCOMPILED = (TorchDynamoException, ConstraintViolationError)
"""What torch.compile raises for code that is no full graph, and for code that fixes a batch size."""
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class CompiledNetwork:
    """A network of several tasks whose requested task sets each run as one compiled graph, without gradients.

    Calling it is calling the network that it was made from. A task set is compiled when it is first asked for. With a
    dynamic batch one graph serves every batch size from 2 up, and size 1 has a graph of its own. `compile` explains the
    arguments.

    Attributes:
        branched: the network that is run.
        eager_heads: tasks whose heads could not be compiled and are called eagerly after the graph.
    """

    takes_inputs_as_one = True

    def __init__(
        self,
        branched: Network,
        *,
        mode: str | None = None,
        dynamic: bool = True,
        autocast: torch.dtype | None = None,
        cast: torch.dtype | None = None,
        channels_last: bool = False,
        regions: bool = False,
        copy_outputs: bool = True,
    ) -> None:
        self.branched = branched
        self.regions = regions
        self.mode = mode
        self.dynamic = dynamic and not isinstance(branched, FusedNetwork)
        self.autocast = autocast
        self.eager_heads: tuple[str, ...] = ()
        self._as_prepared = functools.partial(as_prepared, cast=cast, channels_last=channels_last)
        self._copy_outputs = copy_outputs
        self._find_device()
        self._watch = Watch(branched)
        self._compiled: dict[Any, Callable[[Input], tuple[Outputs, dict[str, Any]]]] = {}

    def __call__(self, x: Input, tasks: Sequence[str] | None = None) -> Outputs:
        """Compute the outputs of `tasks`, all by default; see `BranchedNetwork.forward` for arguments and errors."""
        if (interface := getattr(self.branched, "interface", None)) is not None:
            check_input(x, interface)
        try:
            return self._outputs(x, tasks)
        except (RuntimeError, TypeError, ValueError, IndexError, *UNCOMPILED) as error:
            if isinstance(error, torch.OutOfMemoryError) or interface is None or not (found := unlike(x, interface)):
                raise
            raise BuildError(f"the network cannot be run on {found}: {first_line(error)}") from error

    def _outputs(self, x: Input, tasks: Sequence[str] | None) -> Outputs:
        subset = wanted_tasks(tasks, self.branched.tasks)
        marked = with_dynamic_batch(x, batch_of(x)) if self.dynamic else x
        if self._watch.changed():
            self._forget()
        with torch.no_grad():
            outputs, cuts = self._run(subset, marked)
            if cuts:
                with autocasting(self._device, self.autocast):
                    outputs |= {task: self._heads[task](*cut) for task, cut in cuts.items()}
                outputs = {task: outputs[task] for task in subset}
            return pytree.tree_map(_copied, outputs) if self._copies else outputs

    def _forget(self) -> None:
        """Let go of what was compiled of a network that is another one now."""
        self._compiled.clear()
        self.eager_heads = ()
        self._find_device()

    def _find_device(self) -> None:
        self._device = device_of(self.branched)
        self._copies = self._copy_outputs and self._device == "cuda" and records_cuda_graphs(self.mode)

    def _run(self, subset: tuple[str, ...], x: Input) -> tuple[Outputs, dict[str, Any]]:
        key = (subset, self._watch.modes(), () if self.dynamic else _forms(x))
        compiled = self._compiled.get(key) or self._compile(subset)
        try:
            result = compiled(x)
        except UNCOMPILED as error:
            self._exclude_heads(subset, x, error)
            compiled = self._compile(subset)
            result = compiled(x)
        self._compiled[key] = compiled
        return result

    def _compile(self, subset: tuple[str, ...]) -> Callable[[Input], tuple[Outputs, dict[str, Any]]]:
        network = self.branched
        if self.regions and isinstance(network, BranchedNetwork):
            network = with_regions(network)
        prepared, device, autocast = self._as_prepared, self._device, self.autocast
        eager = tuple(task for task in subset if task in self.eager_heads)
        heads = self._heads

        def run(x: Input) -> tuple[Outputs, dict[str, Any]]:
            x = map_input(prepared, x)
            with autocasting(device, autocast):
                if not eager:
                    return network(x, tasks=subset), {}
                last = network.trunk(x, tasks=subset)  # type: ignore[operator]
                outputs = {task: heads[task](*cut) for task, cut in last.items() if task not in eager}
                return outputs, {task: last[task] for task in eager}

        return compiled_apart(run, mode=self.mode, dynamic=None if self.dynamic else False, module_guards=False)

    def _exclude_heads(self, subset: tuple[str, ...], x: Input, error: Exception) -> None:
        """Find the heads that do not compile on their own; raise `error` where there are none."""
        if isinstance(self.branched, SeparateNetworks):
            raise error
        with autocasting(self._device, self.autocast):
            cuts = self.branched.trunk(map_input(self._as_prepared, x), tasks=subset)
            if self.dynamic:
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
                stacklevel=4,
            )
        self.eager_heads += tuple(problems)

    @property
    def _heads(self) -> dict[str, nn.Module]:
        heads: Iterable[nn.Module] = [] if isinstance(self.branched, SeparateNetworks) else self.branched.heads
        return dict(zip(self.branched.tasks, heads, strict=False))


def compile(
    branched: BranchedNetwork,
    example: Input,
    *,
    mode: str | None = None,
    dynamic: bool = True,
    fuse: bool | Literal["auto"] = False,
    streams: bool = False,
    regions: bool = False,
    autocast: torch.dtype | None = None,
    cast: torch.dtype | None = None,
    channels_last: bool = False,
    fold_batchnorm: bool = False,
    copy_outputs: bool = True,
) -> CompiledNetwork:
    """Compile all tasks of `branched` as one graph (with `streams` as one for each node) and run it once on `example`.

    Without `fuse`, `cast`, `channels_last` and `fold_batchnorm` the network itself is compiled, so that weights changed
    or replaced count at the next call; with any of them a copy is. Exchanged modules, tensors of another form and other
    modes are noticed and compiled anew. Other attributes of a layer, such as its stride, count as they were when it was
    compiled: torch.compile by itself guards all of them, thousands for five networks, and checks these at every call.

    **Outputs** equal those of the network run eagerly within 1e-5 of the largest value of each output in float32, fused
    or not (1e-4 with `fold_batchnorm`), within 5e-2 in bfloat16 and 1e-2 in float16, by `cast` or `autocast`. Those are
    the tolerances that small networks are tested with, on a GPU 1e-3 in float32 with TF32 off; deep ones can need more.

    **CUDA graphs** are recorded in the modes `"reduce-overhead"` and `"max-autotune"` on a GPU: one for each shape of
    the inputs, whether `dynamic` or not, so serve few batch sizes with them. Inputs are copied into the graph's own
    memory at each call. The graph writes its outputs to the same memory at each call; they are copied out of it, so
    that an output which the caller keeps is not overwritten. `copy_outputs=False` spares that copy: each output is then
    valid until the next call only. Weights may be changed in place; replaced tensors record a new graph. Graphs share
    their memory, so call all networks with CUDA graphs from one stream of the GPU.

    Args:
        branched: the network; its current mode (train or eval) is compiled, training mode with a warning.
        example: inputs of the size to expect.
        mode: torch.compile's mode, e.g. `"max-autotune"` or `"reduce-overhead"`.
        dynamic: compile for every batch size (dimension 0 of every input tensor that shares the first one's);
            otherwise one graph for each shape.
        fuse: run equal nodes of a stage as one batched computation: wherever there are some (True), or where
            measuring on this device shows that it is faster (`"auto"`, which compiles each such stage both ways).
            Where nodes are fused there is one graph for each shape: torch.func.vmap fixes the batch size.
        streams: run the branches on parallel streams of a GPU, every node and head compiled on its own (those of one
            structure share a graph); not together with `fuse` or a mode that records CUDA graphs. It has not been
            measured on a GPU yet: compare it with the others on yours. `branchnet.inference.make_schedule(tree)` prints
            what would run where.
        regions: compile equal nodes of a stage once and use that code for each of them, as regions of the one graph
            (`torch.compiler.nested_compile_region`).
            It spares most of the time to compile a tree of many tasks. Nodes that hand tensors on as they got them, as
            skip connections do, cannot be regions and are compiled each. Not together with `fuse` or `streams`.
        autocast: run under autocast to this type, e.g. `torch.bfloat16`; weights stay as they are.
        cast: convert weights and floating-point inputs to this type; outputs are of it, too.
        channels_last: lay weights of convolutions and four-dimensional inputs out with the channels last.
        fold_batchnorm: see `branchnet.inference.prepare`; outputs move by at most 1e-4 of the largest one in float32.
        copy_outputs: keep outputs safe under CUDA graphs, see above.

    Returns:
        The compiled network. A head that cannot be compiled runs eagerly after the graph of everything else, with a
        warning that names it.

    Raises:
        BuildError: this machine cannot compile, the reason is named; a device without streams; or options that exclude
            each other.
    """
    if bool(fuse) + streams + regions > 1:
        raise BuildError(
            f"fuse={fuse!r}, streams={streams} and regions={regions} are different ways with equal nodes: choose one"
        )
    run_as: Callable[..., CompiledNetwork] = functools.partial(
        CompiledNetwork, regions=regions, copy_outputs=copy_outputs
    )
    if streams:
        from branchnet.inference.streams import StreamedNetwork, check_streams

        check_streams(device_of(branched), mode)
        run_as = StreamedNetwork
    if problem := compiler_problem(device_of(branched)):
        raise BuildError(f"torch.compile does not work here: {problem}; use the branched network uncompiled")
    if autocast is not None and cast is not None:
        raise BuildError(f"autocast={autocast} and cast={cast}: choose one of them")
    if fuse not in (True, False, "auto"):
        raise BuildError(f"fuse must be True, False or 'auto'; {fuse!r} was given")
    if branched.training:
        warnings.warn(
            "the network is compiled in training mode, in which BatchNorm and Dropout make an output depend on the "
            "rest of the batch and on chance; call branched.eval() before it is compiled for inference",
            stacklevel=2,
        )
    prepared = prepare(branched, fold_batchnorm=fold_batchnorm, cast=cast, channels_last=channels_last)
    network: Network = prepared
    if fuse == "auto":
        stages = faster_fused(prepared, example, mode=mode, autocast=autocast, cast=cast, channels_last=channels_last)
        network = FusedNetwork(prepared, stages) if stages else prepared
    elif fuse:
        network = FusedNetwork(prepared, range(branched.tree.depth))
    compiled = run_as(network, mode=mode, dynamic=dynamic, autocast=autocast, cast=cast, channels_last=channels_last)
    compiled(example)
    return compiled


def records_cuda_graphs(mode: str | None) -> bool:
    """Whether torch.compile records CUDA graphs, in this mode or everywhere by inductor's own setting."""
    return mode in CUDA_GRAPH_MODES or bool(torch._inductor.config.triton.cudagraphs)


def batch_of(x: Input) -> int:
    """The batch size: the first dimension of the first tensor that has one."""
    leaves = list(x.values()) if isinstance(x, Mapping) else pytree.tree_leaves(x)
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)


def with_dynamic_batch(x: Any, batch: int) -> Any:
    """Alias the tensors with their batch dimension marked dynamic, where there is more than one sample."""

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch > 1:
            value = value.view_as(value)
            torch._dynamo.mark_dynamic(value, 0)
        return value

    return map_input(mark, x)


def _forms(x: Input) -> tuple[Any, ...]:
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


def _copied(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(own, field.name, pytree.tree_map(_copied, getattr(value, field.name)))
        return own
    return value.clone() if isinstance(value, Tensor) else value
