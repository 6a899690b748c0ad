"""torch.compile for branched networks: a network that runs as compiled graphs, and how it is made."""

from __future__ import annotations

import copy
import dataclasses
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input, check_input, one_input, unlike
from branchnet.builder.network.grouped_networks import GroupedNetworks, as_one_network
from branchnet.builder.network.separate_networks import SeparateNetworks
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.errors import BuildError
from branchnet.inference.change_detection import ChangeDetector
from branchnet.inference.fusion import FusedNetwork
from branchnet.inference.fusion_choice import faster_fused
from branchnet.inference.inference_transforms import Fold, prepare
from branchnet.inference.streams import StreamedNodes, check_streams
from branchnet.inference.task_graphs import Network, Outputs, TaskGraphs
from branchnet.inference.torch_compile import (
    UNCOMPILED,
    CompileOptions,
    compiler_problem,
    device_of,
    first_line,
    records_cuda_graphs,
)
from branchnet.stages import Stage, StagedNetwork
from branchnet.utils.installed_torch.torch_internals import pytree


class Runner(Protocol):
    """What runs the tasks of a network compiled: as one graph, or every node on a stream."""

    eager_heads: tuple[str, ...]

    def run(self, subset: tuple[str, ...], modes: tuple[bool, ...], x: Input) -> Outputs:
        """Compute the outputs of the tasks in `subset`; `modes` are those that the network's modules are in."""

    def forget(self) -> None:
        """Let go of what was compiled of a network that is another one now."""


_LOOKING = threading.Lock()  # one for all networks: locks can be neither copied nor pickled


class CompiledNetwork:
    """A network of several tasks whose requested task sets each run compiled, without gradients.

    Calling it is calling the network that it was made from. A task set is compiled when it is first asked for. With a
    dynamic batch one graph serves every batch size from 2 up, and size 1 has a graph of its own. `compile` explains the
    arguments.

    Args:
        branched: the network.
        mode, dynamic, streams, regions, autocast, cast, channels_last, copy_outputs: see `compile`.

    Attributes:
        branched: the network that is run.
        options: how it is compiled.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor")
    >>> compiled = branchnet.compile(branched.eval(), x)
    >>> isinstance(compiled, branchnet.CompiledNetwork)
    True
    >>> list(compiled(x, tasks=["b"]))  # a set of tasks gets its own graph when it is first asked for
    ['b']
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
        streams: bool = False,
        copy_outputs: bool = True,
    ) -> None:
        self.branched = branched
        # torch.func.vmap, which fused nodes use, fixes the batch size.
        dynamic = dynamic and not isinstance(branched, FusedNetwork)
        self.options = CompileOptions(mode, dynamic, autocast, cast, channels_last, regions)
        self._runner: Runner = _runner(branched, self.options, streams=streams)
        self._copy_outputs = copy_outputs
        self._look_again()
        self._changes = ChangeDetector(branched)

    @property
    def eager_heads(self) -> tuple[str, ...]:
        """Tasks whose heads could not be compiled and are called eagerly."""
        return self._runner.eager_heads

    def __call__(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> Outputs:
        """Compute the outputs of `tasks`, all by default; see `BranchedNetwork.forward` for arguments and errors."""
        interface = getattr(self.branched, "interface", None)
        x, tasks = one_input(inputs, tasks, named, interface)
        if interface is not None:
            check_input(x, interface)
        try:
            return self._outputs(x, tasks)
        except (RuntimeError, TypeError, ValueError, IndexError, *UNCOMPILED) as error:
            if isinstance(error, torch.OutOfMemoryError) or interface is None or not (found := unlike(x, interface)):
                raise
            raise BuildError(f"the network cannot be run on {found}: {first_line(error)}") from error

    def _outputs(self, x: Input, tasks: Sequence[str] | None) -> Outputs:
        subset = wanted_tasks(tasks, self.branched.tasks)
        with _LOOKING:  # what was compiled is compared, and forgotten, by one thread at a time
            if self._changes.changed():
                self._forget()
        check_sizes({task: self._first[task] for task in subset if task in self._first}, x)
        with torch.no_grad():
            outputs = self._runner.run(subset, self._changes.modes(), x)
            return pytree.tree_map(_copied, outputs) if self._copies else outputs

    def _forget(self) -> None:
        """Let go of what was compiled of a network that is another one now."""
        self._runner.forget()
        self._look_again()

    def _look_again(self) -> None:
        self._first = first_stages(self.branched)
        on_gpu = device_of(self.branched) == "cuda"
        self._copies = self._copy_outputs and on_gpu and records_cuda_graphs(self.options.mode)


def first_stages(network: Network) -> dict[str, Stage]:
    """What each task's inputs reach first, where stages know which sizes they may have.

    Args:
        network: a network of several tasks.

    Returns:
        by task the stage; without tasks whose network was not split.
    """
    if isinstance(network, SeparateNetworks):
        plain = zip(network.tasks, network.networks, strict=True)
        found = {task: one.stages[0] for task, one in plain if isinstance(one, StagedNetwork)}
    else:
        branched = network.skeleton if isinstance(network, FusedNetwork) else network
        found = {task: branched.path(task).stages[0] for task in branched.tasks}
    return {task: stage for task, stage in found.items() if isinstance(stage, Stage)}


def check_sizes(stages: Mapping[str, Stage], x: Input) -> None:
    """Refuse inputs as the network itself does: compiled and exported code does not look at their sizes.

    Args:
        stages: of `first_stages`.
        x: the inputs.

    Raises:
        SplitError: a size for which the code of a donor may do something else.
    """
    for stage in dict.fromkeys(stages.values()):
        if isinstance(x, Mapping):
            stage.check_sizes(**x)
        else:
            stage.check_sizes(*(x if isinstance(x, tuple) else (x,)))


def _runner(network: Network, options: CompileOptions, *, streams: bool) -> Runner:
    if not streams:
        return TaskGraphs(network, options)
    if not isinstance(network, BranchedNetwork):
        raise BuildError(f"streams=True runs the nodes of a BranchedNetwork; {type(network).__name__} was given")
    return StreamedNodes(network, options)


def compile(
    branched: BranchedNetwork | GroupedNetworks,
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
    fold: Fold = "exact",
    fold_batchnorm: bool = False,
    copy_outputs: bool = True,
) -> CompiledNetwork:
    """Compile all tasks of `branched` as one graph (with `streams` as one for each node) and run it once on `example`.

    Without `fuse`, `cast`, `channels_last`, `fold_batchnorm` and stitches to fold the network itself is compiled, so
    that weights changed or replaced count at the next call; with any of them a copy is. Exchanged modules, tensors of
    another form and other modes are noticed and compiled again. Other attributes of a layer, such as its stride, count
    as they were when it was compiled: torch.compile by itself guards all of them, thousands for five networks, and
    checks these at every call.

    **Outputs** equal those of the network run eagerly within 1e-5 of the largest value of each output in float32, fused
    or not (1e-4 with `fold_batchnorm`), within 5e-2 in bfloat16 and 1e-2 in float16, by `cast` or `autocast`. Those are
    the tolerances that small networks are tested with, on a GPU 1e-3 in float32 with TF32 off; deep ones can need more.

    **CUDA graphs** are recorded in the modes `"reduce-overhead"` and `"max-autotune"` on a GPU: one for each shape of
    the inputs, whether `dynamic` or not, so serve few batch sizes with them. Inputs are copied into the graph's own
    memory at each call. The graph writes its outputs to the same memory at each call; they are copied out of it, so
    that an output which the caller keeps is not overwritten. `copy_outputs=False` saves that copy: each output is then
    valid until the next call only. Weights may be changed in place; replaced tensors record a new graph. Graphs share
    their memory, so call all networks with CUDA graphs from one stream of the GPU.

    Args:
        branched: the network; its current mode (train or eval) is compiled, training mode with a warning. Of
            `GroupedNetworks` what serves is compiled, without auxiliary tasks.
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
            It saves most of the time to compile a tree of many tasks. Nodes that return tensors as they got them, as
            skip connections do, cannot be regions and are compiled each. Not together with `fuse` or `streams`.
        autocast: run under autocast to this type, e.g. `torch.bfloat16`; weights stay as they are.
        cast: convert weights and floating-point inputs to this type; outputs are of it, too.
        channels_last: lay weights of convolutions and four-dimensional inputs out with the channels last.
        fold: whether stitches are folded where that is exact, see `branchnet.inference.prepare`.
        fold_batchnorm: see `branchnet.inference.prepare`; outputs move by at most 1e-4 of the largest one in float32.
        copy_outputs: keep outputs safe under CUDA graphs, see above.

    Returns:
        The compiled network. A head that cannot be compiled runs eagerly after the graph of everything else, with a
        warning that names it.

    Raises:
        BuildError: this machine cannot compile, the reason is named; a device without streams; or options that exclude
            each other.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor")
    >>> compiled = branchnet.compile(branched.eval(), x)
    >>> torch.allclose(compiled(x)["b"], branched(x)["b"], atol=1e-6)
    True
    """
    branched = as_one_network(branched)
    if bool(fuse) + streams + regions > 1:
        raise BuildError(
            f"fuse={fuse!r}, streams={streams} and regions={regions} are different ways with equal nodes; expected one "
            "of them at most"
        )
    if streams:
        check_streams(device_of(branched), mode)
    if problem := compiler_problem(device_of(branched)):
        raise BuildError(f"torch.compile does not work here: {problem}; use the branched network uncompiled")
    if autocast is not None and cast is not None:
        raise BuildError(f"autocast={autocast} and cast={cast} exclude each other; expected one of them at most")
    if fuse not in (True, False, "auto"):
        raise BuildError(f"fuse={fuse!r}; expected True, False or 'auto'")
    if branched.training:
        warnings.warn(
            "the network is compiled in training mode, in which BatchNorm and Dropout make an output depend on the "
            "rest of the batch and on chance; call branched.eval() before it is compiled for inference",
            stacklevel=2,
        )
    prepared = prepare(
        branched, fold=fold, fold_batchnorm=fold_batchnorm, cast=cast, channels_last=channels_last, example=example
    )
    network: Network = prepared
    if fuse == "auto":
        stages = faster_fused(prepared, example, mode=mode, autocast=autocast, cast=cast, channels_last=channels_last)
        network = FusedNetwork(prepared, stages) if stages else prepared
    elif fuse:
        network = FusedNetwork(prepared, range(branched.tree.depth))
    compiled = CompiledNetwork(
        network,
        mode=mode,
        dynamic=dynamic,
        autocast=autocast,
        cast=cast,
        channels_last=channels_last,
        regions=regions,
        streams=streams,
        copy_outputs=copy_outputs,
    )
    compiled(example)
    return compiled


def _copied(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(own, field.name, pytree.tree_map(_copied, getattr(value, field.name)))
        return own
    return value.clone() if isinstance(value, Tensor) else value
