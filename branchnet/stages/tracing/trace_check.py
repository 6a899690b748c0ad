"""Run a network for comparison, and compare graphs of it with what it gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, Interface, call, call_arguments, flat_example
from branchnet.stages.tracing.constants import is_state
from branchnet.stages.tracing.fx_tracer import PREPROCESSING, Trace, transformed, where
from branchnet.stages.tracing.preconditions import check_not_random
from branchnet.stages.tracing.trial import trial
from branchnet.stages.tracing.two_calls import TwoCalls, call_twice
from branchnet.utils.installed_torch.torch_internals import tree_leaves, tree_map, tree_structure
from branchnet.utils.modes import mode_of

# Exported operators may be other kernels than the modules' (decompositions), so float32 results differ by rounding,
# relative to the largest output.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Subject:
    """A network to trace.

    Attributes:
        root: its borrowed structure.
        example: what it takes.
        evaluated: what it did in two calls in evaluation mode; None on the meta device.
    """

    root: nn.Module
    example: Example
    evaluated: TwoCalls | None


def subject_of(root: nn.Module, example: Example) -> Subject:
    """Run a borrowed structure on the example.

    Raises:
        SplitError: it does not run, or is random in evaluation mode.
    """
    if has_no_values(root):
        return Subject(root, example, None)
    name = type(root).__name__
    try:
        evaluated = check_not_random(root, lambda copy, seed: _evaluated(copy, example, seed), apart)
        if PREPROCESSING not in root._modules:
            return Subject(root, example, evaluated)
        with trial(root) as copy, mode_of(copy, training=False), torch.no_grad():
            inputs = transformed(copy, tree_map(_copied, example))
            del copy._modules[PREPROCESSING]
            expected = call(copy, inputs)
    except SplitError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in flat_example(example))
        raise SplitError(f"{name} does not run on the example ({shapes}): {where(error)}") from error
    if apart(expected, evaluated.outputs[0]) > _ROUNDING:
        raise SplitError(
            f"{name} runs all modules that it holds, a transform among them; expected a forward that names its "
            "modules: hold it in another module"
        )
    return Subject(root, example, evaluated)


def _evaluated(copy: nn.Module, example: Example, seed: int) -> TwoCalls:
    with mode_of(copy, training=False):
        return call_twice(copy, lambda: whole_outputs(copy, example), seed=seed)


def has_no_values(root: nn.Module) -> bool:
    """Whether the root lies on the meta device."""
    return any(tensor.is_meta for tensor in (*root.parameters(), *root.buffers()))


def whole_outputs(root: nn.Module, example: Example) -> Any:
    """What the root returns for a copy of the example, its transform included."""
    args, kwargs = call_arguments(transformed(root, tree_map(_copied, example)))
    return root(*args, **kwargs)


def set_training(root: nn.Module, training: bool, left_in_evaluation: Iterable[str]) -> None:
    """Set the mode of all modules, past any `train()` of theirs, and what it leaves in evaluation mode."""
    for module in root.modules():
        module.training = training
    for name in left_in_evaluation:
        root.get_submodule(name).training = False


def verified(trace: Trace, subject: Subject) -> Trace:
    """The trace, if it gives what the network gives; with the network's own form of output.

    Networks without values (on the meta device) cannot be checked. A graph of modules must be bit-exact, a graph of
    operators equal up to rounding.

    Raises:
        SplitError: the outputs differ.
    """
    if subject.evaluated is None:
        return trace
    expected = subject.evaluated.outputs[0]
    try:
        with trial(trace.root) as copy, torch.no_grad():
            got = _FreshConstants(copy, graph=trace.graph).run(*map(_copied, flat_example(subject.example)))
    except Exception as error:
        name = type(trace.root).__name__
        raise SplitError(f"what {trace.method} traced of {name} does not run: {where(error)}") from error
    allowed = _ROUNDING if trace.method == "export" else 0.0
    difference = apart(expected, got)
    if difference > allowed:
        raise SplitError(f"tracing {type(trace.root).__name__} with {trace.method} changes its outputs")
    spec = tree_structure(expected)
    return replace(trace, output=None if spec == tree_structure(got) else spec, difference=difference)


class _FreshConstants(fx.Interpreter):
    """Runs a graph whose code may write to the constants that it makes; see `_propagated` in `trace`."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter or buffer itself, a copy of any other tensor."""
        value = super().get_attr(target, args, kwargs)
        return value if is_state(self.module, str(target)) else _copied(value)


def apart(expected: Any, got: Any) -> float:
    """The largest difference between two outputs of any form."""
    wanted, found = tree_leaves(expected), tree_leaves(got)
    return max(map(_difference, wanted, found), default=0.0) if len(wanted) == len(found) else math.inf


def _difference(wanted: Any, found: Any) -> float:
    """Largest difference relative to the largest value; infinite between things of different kind, shape or type."""
    if not (isinstance(wanted, Tensor) and isinstance(found, Tensor)):
        if type(wanted) is not type(found):
            return math.inf
        if is_dataclass(wanted):
            return max((apart(getattr(wanted, f.name), getattr(found, f.name)) for f in fields(wanted)), default=0.0)
        return 0.0 if wanted == found else math.inf
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return math.inf
    if torch.allclose(wanted, found, 0.0, 0.0, equal_nan=True):
        return 0.0
    scale = float(wanted.abs().max())
    difference = float((wanted - found).abs().max()) / scale if scale else math.inf
    return difference if math.isfinite(difference) else math.inf


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def at_least_two(example: Example) -> Example:
    """The example with its batch doubled where it is one: BatchNorm cannot be trained on a single value."""
    if Interface.of(example).batch != 1:
        return example
    return tree_map(lambda t: torch.cat([t, t]) if t.dim() and t.shape[0] == 1 else t, example)  # type: ignore[no-any-return]
