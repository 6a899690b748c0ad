"""Compare stages with the network that they were made from: in both modes, twice, with gradients and buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, call
from branchnet.stages.staged import StagedNetwork, original_key
from branchnet.stages.tracing.trace import (
    TracedNetwork,
    apart,
    at_least_two,
    has_no_values,
    set_training,
    whole_outputs,
)
from branchnet.stages.tracing.trial import random_states, seed_random_states, trial

# Rounding of other kernels, relative to the largest output; gradients pass many layers.
_OUTPUTS, _GRADIENTS = 1e-5, 1e-3
_SEED = 20_217
_SEEDS = 8
# Of the mean of eight draws: five standard errors are passed once in about a million tests.
_STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class _Run:
    """What a network did in two calls: outputs, the first call's gradients by name; buffers and random states after."""

    outputs: tuple[Any, Any]
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    random_states: bytes


def check_evaluation(traced: TracedNetwork, staged: StagedNetwork, example: Example) -> None:
    """Refuse stages that differ from the network in evaluation mode at the first or a later call.

    Raises:
        SplitError: says what differs.
    """
    if has_no_values(traced.root):
        return
    wanted = _network_run(traced, example, training=False, seed=_SEED)
    found = _staged_run(staged, example, training=False, seed=_SEED)
    if difference := _difference(wanted, found):
        raise SplitError(
            f"the stages of {type(traced.network).__name__} differ from it in {difference}; expected a forward that "
            "keeps what it needs later in buffers, not in other attributes"
        )


def training_difference(traced: TracedNetwork, staged: StagedNetwork, example: Example) -> str | None:
    """Say how stages differ from the network in training mode, None where they do not.

    Args:
        traced: the network.
        staged: its stages.
        example: what it takes.

    Returns:
        What differs, to follow "in training mode".
    """
    if has_no_values(traced.root):
        return None
    example = at_least_two(example)

    def network(seed: int) -> _Run:
        return _network_run(traced, example, training=True, seed=seed)

    try:
        wanted = network(_SEED)
    except Exception:
        return None  # the network itself cannot be trained on the example, so there is nothing to compare with
    try:
        found = _staged_run(staged, example, training=True, seed=_SEED)
        difference = _difference(wanted, found)
        if difference is None and wanted.random_states != found.random_states:
            # Equal by chance: a branch that was taken or not, as in stochastic depth written in Python.
            return "it draws random numbers that its stages do not draw"
        if difference is None or not _is_random(wanted, network(_SEED + 1)):
            return difference and f"its stages differ from it in {difference}"
        return _random_difference(network, lambda seed: _staged_run(staged, example, training=True, seed=seed))
    except Exception as error:
        return f"its stages fail: {error}"


def _network_run(traced: TracedNetwork, example: Example, *, training: bool, seed: int) -> _Run:
    with trial(traced.root) as copy:
        set_training(copy, training, traced.left_in_evaluation)
        return _run(copy, lambda: whole_outputs(copy, example), lambda name: name, training, seed)


def _staged_run(staged: StagedNetwork, example: Example, *, training: bool, seed: int) -> _Run:
    with trial(staged) as copy:
        copy.train(training)
        inputs = torch.utils._pytree.tree_map(Tensor.clone, example)
        return _run(copy, lambda: call(copy, inputs), original_key, training, seed)


def _run(network: nn.Module, forward: Callable[[], Any], key: Callable[[str], str], training: bool, seed: int) -> _Run:
    parameters = {key(name): p for name, p in network.named_parameters(remove_duplicate=False)}
    leaves = [p for p in parameters.values() if p.is_leaf and (p.is_floating_point() or p.is_complex())]
    frozen = [p for p in leaves if not p.requires_grad]
    seed_random_states(seed, leaves)
    try:
        with torch.set_grad_enabled(training):
            for parameter in frozen if training else ():
                parameter.requires_grad_(True)
            first = forward()
            gradients = _gradients(first, parameters) if training else {}
            first = _detached(first)
            second = _detached(forward())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    buffers = {key(name): b.detach().clone() for name, b in network.named_buffers(remove_duplicate=False)}
    return _Run((first, second), gradients, buffers, random_states(leaves))


def _gradients(outputs: Any, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """Gradients of a random linear function of the outputs; None of it where autograd refuses the network."""
    results = [leaf for leaf in _leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    inputs = {name: p for name, p in parameters.items() if p.requires_grad}
    if not results or not inputs:
        return dict.fromkeys(inputs)
    generator = torch.Generator().manual_seed(_SEED)
    weights = [torch.randn(r.shape, generator=generator).to(r.device, r.dtype) for r in results]
    try:
        found = torch.autograd.grad(results, [*inputs.values()], weights, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return {}
        raise
    return dict(zip(inputs, found, strict=True))


def _detached(outputs: Any) -> Any:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(outputs)]


def _leaves(outputs: Any) -> list[Any]:
    leaves: list[Any] = []
    for leaf in tree_leaves(outputs):
        if is_dataclass(leaf):
            leaves += [inner for field in fields(leaf) for inner in _leaves(getattr(leaf, field.name))]
        else:
            leaves.append(leaf)
    return leaves


def _difference(wanted: _Run, found: _Run) -> str | None:
    for name, one, other in zip(("the first", "the second"), wanted.outputs, found.outputs, strict=True):
        if apart(one, other) > _OUTPUTS:
            return f"the outputs of {name} call"
    if wanted.gradients and (lost := _different_gradient(wanted.gradients, found.gradients)):
        return f"the gradient of {lost} (gradients that are switched off, functions of autograd or hooks are lost)"
    for name, buffer in wanted.buffers.items():
        if name in found.buffers and apart(buffer, found.buffers[name]) > _OUTPUTS:
            return f"the buffer {name}"
    return None


def _different_gradient(wanted: dict[str, Tensor | None], found: dict[str, Tensor | None]) -> str | None:
    largest = max((float(g.abs().max()) for g in wanted.values() if g is not None and g.numel()), default=0.0)
    for name, gradient in wanted.items():
        other = found.get(name)
        if gradient is None and other is None:
            continue
        if gradient is None or other is None:
            present = gradient if gradient is not None else other
            if present is not None and bool(present.any()):
                return name
            continue
        # Where the exact gradient is 0, as that of a bias before BatchNorm, rounding alone is left.
        scale = max(float(gradient.abs().max()) if gradient.numel() else 0.0, _GRADIENTS * largest)
        if not torch.allclose(gradient, other, 0.0, _GRADIENTS * scale, equal_nan=True):
            return name
    return None


def _is_random(one: _Run, other: _Run) -> bool:
    return _difference(one, other) is not None


def _random_difference(network: Callable[[int], _Run], stages: Callable[[int], _Run]) -> str | None:
    """How two random functions differ where they draw their numbers in another order: in what varies, and how much."""
    seeds = range(_SEED, _SEED + _SEEDS)
    wanted, found = [network(seed) for seed in seeds], [stages(seed) for seed in seeds]
    if not any(_is_random(found[0], run) for run in found[1:]):
        return "its random numbers were drawn once for ever"
    trained = [_trained(runs) for runs in (wanted, found)]
    if trained[0] != trained[1]:
        return f"its random numbers decide which layers run ({', '.join(sorted(trained[0] ^ trained[1])[:3])})"
    sizes = [torch.tensor([_size(run) for run in runs], dtype=torch.float64) for runs in (wanted, found)]
    error = float(((sizes[0].var() + sizes[1].var()) / _SEEDS).sqrt())
    gap = abs(float(sizes[0].mean() - sizes[1].mean()))
    if gap > _STANDARD_ERRORS * error + _OUTPUTS * float(sizes[0].abs().mean()):
        return "its stages differ from it in the distribution of the outputs"
    return None


def _trained(runs: Sequence[_Run]) -> set[str]:
    """The parameters with a gradient in every one of the runs."""
    names = [{name for name, g in run.gradients.items() if g is not None and bool(g.any())} for run in runs]
    return set.intersection(*names)


def _size(run: _Run) -> float:
    tensors = [leaf for leaf in run.outputs[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return sum(float(tensor.double().square().mean()) for tensor in tensors)
