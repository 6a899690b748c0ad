"""Run a graph once, on fake tensors where possible, and note what every node makes, costs and overwrites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from branchnet.stages.flops import OperatorCounter, without_attention_fast_path
from branchnet.stages.interface import Example, call, flat_example
from branchnet.stages.tracing.fx_tracer import transformed
from branchnet.stages.tracing.trial import borrow, trial
from branchnet.utils.installed_torch.torch_internals import FakeTensor, FakeTensorMode, tree_leaves, tree_map


@dataclass(frozen=True)
class TensorForm:
    """Shape and type of a tensor that was seen."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in memory."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class NodeFacts:
    """What one node did in one run.

    Attributes:
        form: its result, with a TensorForm for each tensor.
        flops: multiply-adds.
        activation_bytes: bytes of the new tensors that it made, inner ones included.
        storages: the memory blocks of its result.
        overwritten: the memory blocks of its arguments, or of its module's tensors, that it wrote to.
        uncounted: the operators whose multiply-adds are not counted.
        state: the memory blocks of its module's tensors.
    """

    form: Any
    flops: int = 0
    activation_bytes: int = 0
    storages: frozenset[int] = frozenset()
    overwritten: frozenset[int] = frozenset()
    uncounted: frozenset[str] = frozenset()
    state: frozenset[int] = frozenset()

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The tensors of the result."""
        return tuple(leaf for leaf in tree_leaves(self.form) if isinstance(leaf, TensorForm))


@dataclass(frozen=True)
class Propagation:
    """Facts per node, and what the graph returned."""

    facts: dict[fx.Node, NodeFacts]
    result: Any


def propagate(root: nn.Module, graph: fx.Graph, example: Example) -> Propagation:
    """Run the graph once on the example without gradients; on real tensors where fake ones cannot be used.

    Parameters, buffers and the random state stay as they are.
    """
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        inputs = tuple(mode.from_tensor(tensor, static_shapes=True) for tensor in flat_example(example))
        with mode:
            # Modules may keep what they computed: a fake tensor must not stay in the root's attributes.
            structure = borrow(root)
            return _run(structure, graph, inputs, _faked_state(structure, mode), mode)
    except Exception:
        # Custom kernels without a fake implementation, or code that reads values.
        with trial(root) as structure:
            return _run(structure, graph, tuple(tensor.clone() for tensor in flat_example(example)), {})


def dry_run(root: nn.Module, example: Example) -> Any:
    """What the root returns for the example after its transform, as fake tensors."""
    mode, root = FakeTensorMode(allow_non_fake_inputs=True), borrow(root)
    faked = tree_map(lambda tensor: mode.from_tensor(tensor, static_shapes=True), example)
    with torch.no_grad(), mode:
        return functional_call(
            _Runner(root, lambda: call(root, transformed(root, faked))),
            _faked_state(root, mode),
            (),
            tie_weights=False,
        )


class _Runner(nn.Module):
    """Runs any function while the root's tensors are exchanged by `functional_call`."""

    def __init__(self, root: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.root = root
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(*args)


def _faked_state(root: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Fake stand-ins of all parameters and buffers: writing to them changes nothing real."""
    state = tensors_by_name(root)
    faked = {id(tensor): mode.from_tensor(tensor, static_shapes=True) for tensor in state.values()}
    return {f"root.{name}": faked[id(tensor)] for name, tensor in state.items()}


def tensors_by_name(root: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each attribute of each module once: what to exchange with `functional_call`.

    Tied tensors have several names. A module that lies at several places has one: exchanged under two of them, its
    tensors would not come back. `functional_call` looks for such names itself unless it gets `tie_weights=False`.
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in root.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _run(
    root: nn.Module,
    graph: fx.Graph,
    inputs: tuple[Tensor, ...],
    state: dict[str, Tensor],
    mode: FakeTensorMode | None = None,
) -> Propagation:
    recorder = _Recorder(root, graph, mode)
    with torch.no_grad(), without_attention_fast_path(), recorder.counter:
        result = functional_call(_Runner(root, recorder.run), state, inputs, tie_weights=False)
    return Propagation(recorder.facts, tree_map(_form, result))


class _Recorder(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph, mode: FakeTensorMode | None) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self._mode = mode
        self.counter = OperatorCounter()
        self.facts: dict[fx.Node, NodeFacts] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Constants as fake tensors, too: in-place operations would write to a stand-in that nobody sees."""
        value = super().get_attr(target, args, kwargs)
        if self._mode is None or not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return self._mode.from_tensor(value, static_shapes=True)

    def run_node(self, n: fx.Node) -> Any:
        arguments = [self.env[node] for node in n.all_input_nodes]
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        state = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
        tensors = [*(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)), *state]
        # torch counts in-place writes per tensor (and per view of it): a changed number means that it was overwritten.
        versions = [tensor._version for tensor in tensors]
        flops, size, unsupported = self.counter.flops, self.counter.bytes, self.counter.unsupported.copy()
        result = super().run_node(n)
        if n.op != "output":
            written = frozenset(
                _storage(t) for t, version in zip(tensors, versions, strict=True) if t._version != version
            )
            # BatchNorm's kernels write to running statistics without a changed number.
            written |= frozenset(map(_storage, _updated(module)))
            leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.facts[n] = NodeFacts(
                tree_map(_form, result),
                self.counter.flops - flops,
                self.counter.bytes - size,
                frozenset(map(_storage, leaves)),
                written,
                frozenset(self.counter.unsupported - unsupported),
                frozenset(map(_storage, state)),
            )
        return result


def _updated(module: Any) -> list[Tensor]:
    """The buffers of those layers of a module that are in training mode."""
    if not isinstance(module, nn.Module):
        return []
    return [buffer for layer in module.modules() if layer.training for buffer in layer.buffers(recurse=False)]


def _form(value: Any) -> Any:
    return TensorForm(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _storage(tensor: Tensor) -> int:
    # Fake tensors have no data pointer; the address of the storage object itself is the same for all views of it.
    return int(tensor.untyped_storage()._cdata)
