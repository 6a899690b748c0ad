"""Compare stages with the network that they were made from: in both modes, twice, with gradients and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, call
from branchnet.stages.staged import StagedNetwork, original_key
from branchnet.stages.tracing.fx_tracer import where
from branchnet.stages.tracing.trace import TracedNetwork
from branchnet.stages.tracing.trace_check import apart, at_least_two, has_no_values, set_training, whole_outputs
from branchnet.stages.tracing.trial import seed_random_states, trial
from branchnet.stages.tracing.two_calls import SEED, TwoCalls, call_twice
from branchnet.utils.installed_torch.torch_internals import TorchDispatchMode, tree_map

# Rounding of other kernels, relative to the largest output; gradients pass many layers. What torch.fx traces runs the
# same kernels: on the CPU, gradients of ResNet-50, DeepLabV3 and ViT are bit-exact.
_OUTPUTS, _GRADIENTS, _SAME_KERNELS = 1e-5, 1e-3, 1e-5
# Where the exact gradient is 0, as that of a bias before BatchNorm, rounding is left, relative to the largest one.
_NO_GRADIENT = 1e-6


def check_evaluation(traced: TracedNetwork, staged: StagedNetwork, example: Example) -> None:
    """Refuse stages that differ from the network in evaluation mode at the first or a later call.

    Raises:
        SplitError: says what differs.
    """
    if traced.evaluated is None:
        return
    if difference := _difference(traced.evaluated, _staged_called(staged, example, training=False)):
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
    example, within = at_least_two(example), _allowed_of_gradients(traced)
    try:
        wanted = _network_trained(traced, example)
    except Exception:
        return None  # the network itself cannot be trained on the example, so there is nothing to compare with
    try:
        found = _staged_called(staged, example, training=True)
        difference = _difference(wanted, found, within)
        if difference is not None and _outputs_difference(wanted, found) is None:
            return f"its stages differ from it in {difference}"  # whatever the order of its random numbers
        if wanted.random_states != found.random_states:
            # Such as noise that is drawn while tracing, or stochastic depth in Python, whatever the branch that was
            # taken. The same numbers in another order leave the states as they are.
            return "it draws random numbers that its stages do not draw"
        if difference is None:
            return None
        with _EqualDraws([*traced.root.parameters()]):
            wanted = _network_trained(traced, example)
            difference = _difference(wanted, _staged_called(staged, example, training=True), within)
        return difference and f"its stages differ from it in {difference}"
    except Exception as error:
        return f"its stages fail: {where(error)}"


def _allowed_of_gradients(traced: TracedNetwork) -> float:
    on_cpu = all(parameter.device.type == "cpu" for parameter in traced.root.parameters())
    return _SAME_KERNELS if on_cpu and traced.evaluation.trace.method == "fx" else _GRADIENTS


class _EqualDraws(TorchDispatchMode):
    """While active, all draws of one kind and form give the same numbers, in whatever order they are made."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Start the random numbers at the seed before each draw."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            seed_random_states(SEED, self._tensors)
        return func(*args, **(kwargs or {}))


def _network_trained(traced: TracedNetwork, example: Example) -> TwoCalls:
    with trial(traced.root) as copy:
        set_training(copy, True, traced.left_in_evaluation)
        return call_twice(copy, lambda: whole_outputs(copy, example))


def _staged_called(staged: StagedNetwork, example: Example, *, training: bool) -> TwoCalls:
    with trial(staged) as copy:
        copy.train(training)
        inputs = tree_map(Tensor.clone, example)
        return call_twice(copy, lambda: call(copy, inputs), original_key)


def _difference(wanted: TwoCalls, found: TwoCalls, within: float = _GRADIENTS) -> str | None:
    if difference := _outputs_difference(wanted, found):
        return difference
    if wanted.gradients and (lost := _different_gradient(wanted.gradients, found.gradients, within)):
        return f"the gradient of {lost} (gradients that are switched off, functions of autograd or hooks are lost)"
    for name, buffer in wanted.buffers.items():
        if name in found.buffers and apart(buffer, found.buffers[name]) > _OUTPUTS:
            return f"the buffer {name}"
    return None


def _outputs_difference(wanted: TwoCalls, found: TwoCalls) -> str | None:
    for name, one, other in zip(("the first", "the second"), wanted.outputs, found.outputs, strict=True):
        if apart(one, other) > _OUTPUTS:
            return f"the outputs of {name} call"
    return None


def _different_gradient(wanted: dict[str, Tensor | None], found: dict[str, Tensor | None], within: float) -> str | None:
    unequal = [name for name, gradient in wanted.items() if not _equal(gradient, found.get(name))]
    if not unequal:
        return None
    largest = max((float(g.abs().max()) for g in wanted.values() if g is not None and g.numel()), default=0.0)
    for name in unequal:
        gradient, other = wanted[name], found.get(name)
        if gradient is None or other is None:
            present = gradient if gradient is not None else other
            if present is not None and bool(present.any()):
                return name
            continue
        allowed = max(within * float(gradient.abs().max()) if gradient.numel() else 0.0, _NO_GRADIENT * largest)
        if not torch.allclose(gradient, other, 0.0, allowed, equal_nan=True):
            return name
    return None


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
