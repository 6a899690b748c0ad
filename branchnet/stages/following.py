"""Follow a network in both modes by the most faithful way that works, and check the result against the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from branchnet.errors import SplitError
from branchnet.stages.dataflow import Dataflow
from branchnet.stages.interface import Example, Interface, flat_example
from branchnet.stages.propagation import propagate
from branchnet.stages.tracing import PREPROCESSING, Trace, borrow, run_with_preprocessing, trace_fx, unwrap

_WHOLE_SHARE = 0.25


@dataclass(frozen=True)
class Followed:
    """A network followed in evaluation mode and, where possible, in training mode.

    Attributes:
        network: the network as it was given, without wrappers.
        root: its borrowed structure, to which the graphs refer.
        evaluation: dataflow of evaluation mode.
        training: dataflow of training mode, or None.
        eval_only: why there is none, or None.
    """

    network: nn.Module
    root: nn.Module
    evaluation: Dataflow
    training: Dataflow | None
    eval_only: str | None


def follow_all(
    networks: Mapping[str, nn.Module], example: Example, transforms: Mapping[str, nn.Module]
) -> list[Followed]:
    """Follow every network by the same way, so that they can be compared."""
    if not networks:
        raise SplitError("there are no networks to split")
    if unknown := sorted(set(transforms) - set(networks)):
        raise SplitError(f"transforms are given for {unknown}, which are no networks; there are {sorted(networks)}")
    roots = [_root(network, transforms.get(task), bool(transforms)) for task, network in networks.items()]
    _check_transforms(dict(zip(networks, roots, strict=True)), example)
    traces = [_trace(root, example) for root in roots]
    whole = frozenset[type]().union(*(trace.kept_whole for trace in traces))
    return [
        _complete(unwrap(network), root, trace if trace.kept_whole == whole else _trace(root, example, whole), example)
        for network, root, trace in zip(networks.values(), roots, traces, strict=True)
    ]


def follow(network: nn.Module, example: Example) -> Followed:
    """Follow one network."""
    return follow_all({"network": network}, example, {})[0]


def _root(network: nn.Module, transform: nn.Module | None, any_transforms: bool) -> nn.Module:
    root = borrow(unwrap(network))
    if any_transforms:
        root.add_module(PREPROCESSING, borrow(transform) if transform is not None else nn.Identity())
    return root


def _check_transforms(roots: Mapping[str, nn.Module], example: Example) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for task, root in roots.items():
        transform = root._modules.get(PREPROCESSING)
        if transform is not None:
            with torch.no_grad():
                shapes[task] = tuple(transform(flat_example(example)[0].clone()).shape)
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{task}: {shape}" for task, shape in shapes.items())
        raise SplitError(f"cannot share stage 0: the transforms give inputs of different shapes ({text})")


def _trace(root: nn.Module, example: Example, whole: Iterable[type] = ()) -> Trace:
    """Trace in evaluation mode."""
    with mode_of(root, training=False):
        return trace_fx(root, example, whole)


def _complete(network: nn.Module, root: nn.Module, trace: Trace, example: Example) -> Followed:
    with mode_of(root, training=False):
        trace = _verified(trace, example)
        evaluation = Dataflow(trace, propagate(root, trace.graph, example))
    try:
        with mode_of(root, training=True):
            training = _training_flow(root, trace, example)
    except Exception as error:
        return Followed(network, root, evaluation, None, f"its training mode cannot be followed: {error}")
    return Followed(network, root, evaluation, training, None)


def _training_flow(root: nn.Module, evaluation: Trace, example: Example) -> Dataflow:
    trace = trace_fx(root, example, evaluation.kept_whole)
    return Dataflow(replace(trace, output=evaluation.output), propagate(root, trace.graph, _at_least_two(example)))


class mode_of:
    """Context in which a module and all below it are in one mode; each gets its own back afterwards."""

    def __init__(self, root: nn.Module, *, training: bool) -> None:
        self._modes = [(module, module.training) for module in root.modules()]
        self._training = training

    def __enter__(self) -> None:
        for module, _ in self._modes:
            module.training = self._training

    def __exit__(self, *error: object) -> None:
        for module, mode in self._modes:
            module.training = mode


def _verified(trace: Trace, example: Example) -> Trace:
    """The trace, if it gives what the network gives; with the network's own form of output.

    Networks without values (on the meta device) cannot be checked.

    Raises:
        SplitError: the outputs differ.
    """
    if any(tensor.is_meta for tensor in (*trace.root.parameters(), *trace.root.buffers())):
        return trace
    with torch.no_grad():
        expected = run_with_preprocessing(trace.root, tree_map(_copied, example))
        got = fx.Interpreter(trace.root, graph=trace.graph).run(*map(_copied, flat_example(example)))
    wanted, found = tree_leaves(expected), tree_leaves(got)
    if len(wanted) != len(found) or not all(map(_same, wanted, found)):
        raise SplitError(f"following {type(trace.root).__name__} with {trace.method} changes its outputs")
    spec = tree_structure(expected)
    return trace if spec == tree_structure(got) else replace(trace, output=spec)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, 0.0, 0.0, equal_nan=True))
    return type(a) is type(b) and bool(a == b)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _at_least_two(example: Example) -> Example:
    """The example with its batch doubled where it is one: BatchNorm cannot be trained on a single value."""
    if Interface.of(example).batch != 1:
        return example
    return tree_map(lambda t: torch.cat([t, t]) if t.dim() and t.shape[0] == 1 else t, example)  # type: ignore[no-any-return]
