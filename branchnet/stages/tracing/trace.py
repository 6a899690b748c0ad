"""Trace a network in both modes by the most faithful method that works, and check the result against the network.

torch.fx keeps modules as they are; torch.export turns them into operators; a chain of module calls leaves the code
around it to Python. They are tried in this order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from branchnet.errors import SplitError
from branchnet.stages.graph.dataflow import Dataflow, attribute
from branchnet.stages.graph.propagation import Propagation, TensorForm, dry_run, propagate
from branchnet.stages.heads.raw_network import check_heads
from branchnet.stages.interface import Example, flat_example
from branchnet.stages.tracing.allowed_sizes import AllowedSizes
from branchnet.stages.tracing.chain.module_chain import trace_chain
from branchnet.stages.tracing.constants import is_state
from branchnet.stages.tracing.export_tracer import trace_export
from branchnet.stages.tracing.fx_tracer import PREPROCESSING, Trace, trace_fx, unwrap
from branchnet.stages.tracing.opened_norms import open_norms
from branchnet.stages.tracing.preconditions import check_supported
from branchnet.stages.tracing.trace_check import (
    Subject,
    at_least_two,
    set_training,
    subject_of,
    verified,
    whole_outputs,
)
from branchnet.stages.tracing.trial import borrow, random_states_kept, trial
from branchnet.stages.tracing.two_calls import TwoCalls
from branchnet.stages.transforms import as_module
from branchnet.utils.installed_torch.torch_internals import TreeSpec, tree_map, tree_structure
from branchnet.utils.modes import mode_of

# A module that fx has to keep whole cannot be cut inside. Up to a quarter of the parameters in one is accepted, and up
# to half of them where only the output follows: it is a head, behind all places where the network would be cut.
_WHOLE_SHARE, _WHOLE_HEAD_SHARE = 0.25, 0.5


@dataclass(frozen=True)
class TracedNetwork:
    """A network traced in evaluation mode and, where possible, in training mode.

    Attributes:
        network: the network as it was given, without wrappers.
        root: its borrowed structure, to which the graphs refer.
        evaluation: dataflow of evaluation mode.
        training: dataflow of training mode, or None.
        eval_only: why there is none, or None.
        left_in_evaluation: names of the modules that the network's own `train()` leaves in evaluation mode.
        evaluated: what the network did in two calls in evaluation mode; None on the meta device.
    """

    network: nn.Module
    root: nn.Module
    evaluation: Dataflow
    training: Dataflow | None
    eval_only: str | None
    left_in_evaluation: tuple[str, ...] = ()
    evaluated: TwoCalls | None = None


def trace_all(
    networks: Mapping[str, nn.Module], example: Example, transforms: Mapping[str, Any]
) -> list[TracedNetwork]:
    """Trace every network by the same method, so that their graphs can be compared.

    Args:
        networks: networks by task.
        example: what all of them take.
        transforms: preprocessing of the first input by task, as modules or weights of torchvision; may lack tasks.

    Returns:
        One traced network per task, in order.

    Raises:
        SplitError: the arguments do not fit together, or a network cannot be traced.
    """
    if not isinstance(networks, Mapping):
        raise SplitError(
            f"networks is a {type(networks).__name__}; expected a mapping of task names to networks, such as "
            '{"depth": network}'
        )
    if not networks:
        raise SplitError("networks is empty; expected at least one network by task name")
    if unknown := sorted(set(transforms) - set(networks)):
        raise SplitError(f"transforms names unknown tasks {unknown}; expected some of {sorted(networks)}")
    for network in networks.values():
        check_supported(unwrap(network), example)
    check_heads(networks)
    modules = {task: as_module(transform, task) for task, transform in transforms.items()}
    roots = [_root(network, modules.get(task), bool(modules)) for task, network in networks.items()]
    _check_transforms(dict(zip(networks, roots, strict=True)), example)
    subjects = [subject_of(root, example) for root in roots]
    traces = _by_one_method([_trace(subject) for subject in subjects], subjects)
    return [
        _complete(unwrap(network), trace, subject)
        for network, trace, subject in zip(networks.values(), traces, subjects, strict=True)
    ]


def trace_network(network: nn.Module, example: Example) -> TracedNetwork:
    """Trace one network.

    Raises:
        SplitError: it cannot be traced.
    """
    return trace_all({"network": network}, example, {})[0]


def _by_one_method(traces: list[Trace], subjects: list[Subject]) -> list[Trace]:
    """The traces, all by the same method and with the same types of modules kept whole."""
    methods = {trace.method for trace in traces}
    if len(methods) > 1:
        method, again = ("chain", _by_chain) if "chain" in methods else ("export", _by_export)
        return [one if one.method == method else again(subject) for one, subject in zip(traces, subjects, strict=True)]
    whole = frozenset[type]().union(*(trace.kept_whole for trace in traces))
    return [
        one if one.kept_whole == whole else _by_fx(subject, whole)
        for one, subject in zip(traces, subjects, strict=True)
    ]


def _root(network: nn.Module, transform: nn.Module | None, any_transforms: bool) -> nn.Module:
    root = open_norms(borrow(unwrap(network)))
    if any_transforms:
        if isinstance(root, nn.Sequential):
            root.__class__ = _without_preprocessing(type(root))
        root.add_module(PREPROCESSING, borrow(transform) if transform is not None else nn.Identity())
    return root


def _without_preprocessing(kind: type[nn.Sequential]) -> type[nn.Sequential]:
    """A class of sequences in which the transform that is added to them is not a step."""

    def steps(self: nn.Sequential) -> Iterator[nn.Module]:
        transform = self._modules.get(PREPROCESSING)
        return iter([module for module in kind.__iter__(self) if module is not transform])

    names = {"__iter__": steps, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def _check_transforms(roots: Mapping[str, nn.Module], example: Example) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for task, root in roots.items():
        transform = root._modules.get(PREPROCESSING)
        if transform is not None:
            with trial(transform) as copy, torch.no_grad():
                shapes[task] = tuple(copy(flat_example(example)[0].clone()).shape)
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{task}: {shape}" for task, shape in shapes.items())
        raise SplitError(f"cannot share stage 0: the transforms give inputs of different shapes ({text}); expected one")


def _trace(subject: Subject) -> Trace:
    """Trace in evaluation mode, by torch.fx unless it fails or leaves a large part of the network unopened.

    A network whose own code decides by values is refused: a chain of its modules would fix what the example decided.

    Raises:
        SplitError: no method works; it says why each failed.
    """
    found = None
    reasons = []
    try:
        found = _by_fx(subject)
        if _opens_enough(found):
            return found
    except SplitError as error:
        reasons.append(error)
    try:
        return _by_export(subject)
    except SplitError as error:
        reasons.append(error)
    if not _decides_by_values(reasons):
        try:
            chain = _by_chain(subject)
            return chain if found is None or _largest_node(chain) < _largest_node(found) else found
        except SplitError as error:
            reasons.append(error)
    if found is not None:
        return found
    raise SplitError(
        "\n".join(map(str, reasons))
        + "\nmove decisions that depend on values out of forward, or into a module without "
        "children, which is kept whole"
    ) from reasons[0]


def _by_fx(subject: Subject, whole: Iterable[type] = ()) -> Trace:
    with mode_of(subject.root, training=False):
        return verified(trace_fx(subject.root, subject.example, whole), subject)


def _decides_by_values(reasons: Iterable[SplitError]) -> bool:
    return any(isinstance(reason.__cause__, GuardOnDataDependentSymNode) for reason in reasons)


def _by_chain(subject: Subject) -> Trace:
    with mode_of(subject.root, training=False):
        return verified(_chain(subject.root, subject.example), subject)


def _chain(root: nn.Module, example: Example) -> Trace:
    with trial(root) as copy:
        return replace(trace_chain(copy, example), root=root)


def _by_export(subject: Subject) -> Trace:
    """Export with as much left free as works and is right at the example's own size."""
    try:
        return _exported(subject, "sizes")
    except SplitError as first:
        with suppress(SplitError):
            return _exported(subject, "batch")
        with suppress(SplitError):
            return _exported(subject, "none")
        raise first  # the error of the freest export says most about the network's own code


def _exported(subject: Subject, dynamic: str) -> Trace:
    root, example = subject.root, subject.example
    with mode_of(root, training=False):
        trace = trace_export(root, example if dynamic == "none" else at_least_two(example), dynamic=dynamic)
        found = replace(verified(trace, subject), dynamic=dynamic)
        sizes = _with_length_one(found, subject)
        if sizes is not None:
            sizes.check(flat_example(example))  # a batch of one is doubled above
        return replace(found, sizes=sizes)


def _with_length_one(trace: Trace, subject: Subject) -> AllowedSizes | None:
    """The allowed sizes, without a free length of 1 for which the graph is not the network."""
    sizes = trace.sizes
    if sizes is None or subject.evaluated is None:
        return sizes
    wrong = frozenset(s for s in sizes.symbols() if not _right_at_one(trace, subject.example, sizes.lengths, {s}))
    batch = frozenset(names[0] for names in sizes.lengths if names and isinstance(names[0], str))
    together = bool(wrong & batch) and len(batch) > 1 and _right_at_one(trace, subject.example, sizes.lengths, batch)
    return replace(sizes, not_one=wrong, one_together=batch if together else frozenset())


def _right_at_one(
    trace: Trace, example: Example, lengths: Sequence[Sequence[int | str | None]], symbols: Collection[str]
) -> bool:
    tensors = flat_example(example)
    named = [
        (t, dim) for t, names in zip(tensors, lengths, strict=False) for dim, s in enumerate(names) if s in symbols
    ]
    if all(tensor.shape[dim] == 1 for tensor, dim in named):
        return True  # as the example was
    remaining = iter(lengths)

    def shortened(tensor: Tensor) -> Tensor:
        for dim, length in enumerate(next(remaining)):
            tensor = tensor.narrow(dim, 0, 1) if length in symbols else tensor
        return tensor

    try:
        verified(trace, subject_of(trace.root, tree_map(shortened, example)))
    except Exception:
        return False
    return True


def _opens_enough(trace: Trace) -> bool:
    """Whether no module that had to be kept whole holds too large a share of the parameters."""
    total = sum(parameter.numel() for parameter in trace.root.parameters())
    shares = {True: 0.0, False: 0.0}
    for node in trace.graph.nodes:
        if node.op == "call_module":
            module = trace.root.get_submodule(str(node.target))
            if type(module) in trace.kept_whole:
                ends = _ends_the_network(node)
                shares[ends] = max(shares[ends], sum(p.numel() for p in module.parameters()) / max(total, 1))
    return shares[False] <= _WHOLE_SHARE and shares[True] <= _WHOLE_HEAD_SHARE


def _ends_the_network(node: fx.Node) -> bool:
    """Whether nothing with parameters follows a node."""
    followers, queue = {node}, [node]
    while queue:
        for user in queue.pop().users:
            if user.op == "call_module" or any(other.op == "get_attr" for other in user.all_input_nodes):
                return False
            if user not in followers:
                followers.add(user)
                queue.append(user)
    return True


def _largest_node(trace: Trace) -> int:
    """Parameters of the node that holds most of them."""
    sizes = [0]
    for node in trace.graph.nodes:
        if node.op == "call_module":
            sizes.append(sum(p.numel() for p in trace.root.get_submodule(str(node.target)).parameters()))
        values = [attribute(trace.root, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
        sizes.append(sum(value.numel() for value in values if isinstance(value, nn.Parameter)))
    return max(sizes)


def _complete(network: nn.Module, trace: Trace, subject: Subject) -> TracedNetwork:
    root, example = subject.root, subject.example
    evaluation = _evaluation_flow(trace, subject)
    trace = evaluation.trace
    left = _left_in_evaluation(root)
    try:
        with mode_of(root, training=True):
            set_training(root, True, left)
            training = _training_flow(trace, example)
    except Exception as error:
        reason = f"its training mode cannot be traced: {error}"
        return TracedNetwork(network, root, evaluation, None, reason, left, subject.evaluated)
    return TracedNetwork(network, root, evaluation, training, None, left, subject.evaluated)


def _evaluation_flow(trace: Trace, subject: Subject) -> Dataflow:
    """The dataflow of evaluation mode; with fixed sizes where an export with free ones cannot be run on stand-ins."""
    with mode_of(subject.root, training=False):
        try:
            return Dataflow(trace, _propagated(trace, subject.example))
        except Exception:
            if trace.method != "export" or trace.dynamic == "none":
                raise
    fixed = _exported(subject, "none")
    with mode_of(subject.root, training=False):
        return Dataflow(fixed, _propagated(fixed, subject.example))


def _left_in_evaluation(root: nn.Module) -> tuple[str, ...]:
    """Modules such as frozen BatchNorm; none where the network refuses to be trained at all."""
    copy = borrow(root)
    with suppress(Exception):
        copy.train()
        if copy.training:
            return tuple(name for name, module in copy.named_modules() if not module.training)
    return ()


def _training_flow(evaluation: Trace, example: Example) -> Dataflow:
    root, several = evaluation.root, at_least_two(example)
    if evaluation.method == "export":
        trace = trace_export(root, example if evaluation.dynamic == "none" else several, dynamic=evaluation.dynamic)
        if trace.sizes is not None and evaluation.sizes is not None:
            known = evaluation.sizes
            trace.sizes = replace(trace.sizes, not_one=known.not_one, one_together=known.one_together)
    elif evaluation.method == "chain":
        trace = _chain(root, several)
    else:
        trace = trace_fx(root, example, evaluation.kept_whole)
    propagation = _propagated(trace, several)
    plain = evaluation.output is None and isinstance(propagation.result, TensorForm)
    form = None if plain or trace.method == "chain" else _output_form(trace, propagation, several)
    return Dataflow(replace(trace, output=form), propagation)


def _propagated(trace: Trace, example: Example) -> Propagation:
    """What the nodes do; a constant that the code writes to is copied at each call first, as the code makes it."""
    with random_states_kept(trace.root.parameters()):
        propagation = propagate(trace.root, trace.graph, example)
    overwritten = frozenset[int]().union(*(facts.overwritten for facts in propagation.facts.values()))
    written = [
        node
        for node, facts in propagation.facts.items()
        if node.op == "get_attr" and not is_state(trace.root, str(node.target)) and facts.storages & overwritten
    ]
    if not written:
        return propagation
    for node in written:
        _use_copy(trace.graph, node)
    with random_states_kept(trace.root.parameters()):
        return propagate(trace.root, trace.graph, example)


def _use_copy(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_after(node):
        copied = graph.call_method("clone", (node,))
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)


def _output_form(trace: Trace, propagation: Propagation, example: Example) -> TreeSpec | None:
    """The form of what the network returns in training mode, where its graph returns another one."""
    graph_form = tree_structure(propagation.result)
    try:
        with random_states_kept(trace.root.parameters()):
            expected = tree_structure(dry_run(trace.root, example))
    except Exception:
        # A module that was kept whole may read values, which fake tensors lack.
        with trial(trace.root) as copy, torch.no_grad():
            expected = tree_structure(whole_outputs(copy, example))
    return None if expected == graph_form else expected
