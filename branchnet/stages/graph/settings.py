"""What of a module's attributes decides what it computes, as something hashable to compare.

Every attribute counts, private ones, containers, functions with what they enclose, hooks and plain tensors included,
unless it is known to change nothing in evaluation mode. A shared stage keeps its donor's values of those.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from branchnet.stages.tracing.constants import content
from branchnet.utils.installed_torch.torch_internals import DropoutBase, NormBase

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""The mode, tensors and children, compared separately, and torch's bookkeeping."""
_BOOKKEEPING = frozenset({"_is_hf_initialized"})
"""Whether transformers has initialised a module: no forward reads it."""
_LIBRARIES = ("torch.", "torchvision.", "timm.", "transformers.")
# Each is read in training mode alone by the classes of these libraries: the probability of dropping, and how fast
# running statistics follow. `inplace` decides where a result lies, and who reads what is overwritten counts for itself.
_IN_TRAINING_ONLY: tuple[tuple[type[nn.Module], frozenset[str]], ...] = (
    (DropoutBase, frozenset({"p"})),
    (NormBase, frozenset({"momentum"})),
)
_NORMS = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_OF_NORMS = frozenset({"eps"})
"""A constant that goes with the weights: a stage is copied with it, so it computes what its donor's does."""
_OF_RECURRENT_LAYERS = frozenset({"_flat_weights", "_flat_weight_refs"})
"""The parameters in another form."""
_OF_LABELS = frozenset({"num_labels", "id2label", "label2id", "problem_type"})
"""What configurations of transformers say of the task: the width of the head, and its loss."""
_OF_DROPPING_LAYERS = frozenset({"p", "prob", "drop_prob", "drop_rate"})
_DROPPING = frozenset({"DropBlock2d", "DropBlock3d", "StochasticDepth", "StableDropout"})
"""Layers of torchvision, timm and transformers besides their many copies of `DropPath`."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def module_signature(module: nn.Module) -> Any:
    """Type, settings, hooks and parameter shapes of a module and its children, as something hashable."""
    state = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return tuple(_layer(name, child, type(child), state) for name, child in module.named_modules())


def differing_settings(modules: Sequence[nn.Module]) -> list[str]:
    """Names of the settings in which modules of one type differ, `child.name` for those of children."""
    layers = [
        {(name, key): value for name, _, settings, *_ in module_signature(module) for key, value in settings[:-1]}
        for module in modules
    ]
    keys = dict.fromkeys(key for settings in layers for key in settings)
    return [".".join(filter(None, key)) for key in keys if len({repr(settings.get(key)) for settings in layers}) > 1]


def norm_signature(module: nn.BatchNorm2d) -> Any:
    """The signature of the plain BatchNorm that a fused one begins with."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (_layer("", module, nn.BatchNorm2d, {id(tensor) for tensor in own}),)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward."""
    return any(getattr(module, kind) for kind in _HOOKS)


def is_dropping(kind: type[nn.Module]) -> bool:
    """Whether modules are a library's layers that drop values in training and return their argument otherwise."""
    if not kind.forward.__module__.startswith(_LIBRARIES):
        return False
    return issubclass(kind, DropoutBase) or kind.__name__.endswith("DropPath") or kind.__name__ in _DROPPING


def _layer(name: str, module: nn.Module, kind: type[nn.Module], state: Collection[int]) -> Any:
    return (
        name,
        qualified_name(kind),
        _settings(module, kind, state),
        tuple((key, form(value)) for key, value in module.named_parameters(recurse=False)),
        tuple((key, form(value)) for key, value in module.named_buffers(recurse=False)),
    )


def form(tensor: Tensor) -> Any:
    """Shape and type of a parameter or buffer, whose values belong to the state."""
    return (tuple(tensor.shape), str(tensor.dtype))


def qualified_name(thing: Any) -> str:
    """Module and name of a class or function."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"


def _settings(module: nn.Module, kind: type[nn.Module], state: Collection[int]) -> tuple[Any, ...]:
    hooks = [hook for kind in _HOOKS for hook in getattr(module, kind).values()]
    # Hooks such as those of weight_norm compute an attribute from the parameters.
    ignored = _OF_EVERY_MODULE | _BOOKKEEPING | _ignored(kind) | {getattr(hook, "name", None) for hook in hooks}
    kept = sorted((key, value) for key, value in vars(module).items() if key not in ignored)
    reader = _Reader(state, kind)
    return (*((key, reader.setting(value)) for key, value in kept), tuple(map(reader.setting, hooks)))


def _ignored(kind: type[nn.Module]) -> frozenset[str]:
    """Names of settings that change no result of such modules in evaluation mode, or that go with their weights."""
    if issubclass(kind, nn.RNNBase):
        return _OF_RECURRENT_LAYERS
    if not kind.forward.__module__.startswith(_LIBRARIES):
        return frozenset()  # code of the user's, which may do anything with them
    known = [names for base, names in _IN_TRAINING_ONLY if issubclass(kind, base)]
    if is_dropping(kind):
        known.append(_OF_DROPPING_LAYERS)
    if issubclass(kind, _NORMS) or kind.__name__.endswith("FrozenBatchNorm2d"):
        known.append(_OF_NORMS)
    return frozenset({"inplace"}).union(*known)


class _Reader:
    """Reads the values of one module's attributes; what is met again counts as the same thing, not as its content."""

    def __init__(self, state: Collection[int], reading: type) -> None:
        self._state = state
        self._reading = reading
        self._met: dict[int, tuple[int, Any]] = {}

    def setting(self, value: Any) -> Any:
        """A value by what it says."""
        if isinstance(value, Tensor):
            apart = id(value) in self._state or isinstance(value, nn.Parameter) or value.requires_grad
            return form(value) if apart else (*form(value), content(value))
        if isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.Size | None):
            return (type(value).__name__, repr(value))
        if id(value) in self._met:
            return ("met", self._met[id(value)][0])
        self._met[id(value)] = (len(self._met), value)  # held, so that no other object gets its id
        if type(value).__module__.startswith("transformers.") and hasattr(value, "id2label"):
            return _configuration(value, self._reading, self.setting)
        return _compound(value, self.setting)


def _compound(value: Any, inner: Callable[[Any], Any]) -> Any:
    kind = type(value).__name__
    if isinstance(value, nn.Module | type):
        return (kind, qualified_name(value if isinstance(value, type) else type(value)))
    if isinstance(value, tuple | list):
        return (kind, *map(inner, value))
    if isinstance(value, Mapping):
        return (kind, *sorted((repr(key), repr(inner(held))) for key, held in value.items()))
    if isinstance(value, set | frozenset):
        return (kind, *sorted(repr(inner(held)) for held in value))
    if isinstance(value, np.ndarray):
        return (kind, value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, functools.partial):
        return (kind, inner(value.func), inner(value.args), inner(value.keywords))
    if isinstance(value, FunctionType):
        return _function(value, inner)
    if hasattr(value, "__qualname__"):
        return qualified_name(value)
    held = getattr(value, "__dict__", {})
    return (qualified_name(type(value)), *((key, inner(each)) for key, each in sorted(held.items())))


def _configuration(value: Any, reading: type, inner: Callable[[Any], Any]) -> Any:
    """A configuration of transformers, by what the methods of the module that holds it name.

    All of them hold the whole network's; what `__init__` made of it are attributes of their own. Probabilities of
    dropping are read in training mode alone.
    """
    classes = [base for base in reading.__mro__ if base not in nn.Module.__mro__]
    methods = [f for base in classes for f in vars(base).values() if isinstance(f, FunctionType)]
    named = {name for method in methods if method.__name__ != "__init__" for name in method.__code__.co_names}
    read = sorted(name for name in named - _OF_LABELS if "drop" not in name and hasattr(value, name))
    held = [(name, getattr(value, name)) for name in read]
    return (qualified_name(type(value)), *((name, inner(each)) for name, each in held if not callable(each)))


def _function(function: FunctionType, inner: Callable[[Any], Any]) -> Any:
    """A function by its name, its code and the values that it encloses: two lambdas in one class have one name."""
    code = function.__code__
    constants = tuple(repr(value) for value in code.co_consts if not hasattr(value, "co_code"))
    enclosed = tuple(inner(cell.cell_contents) for cell in function.__closure__ or () if _is_filled(cell))
    defaults = inner((function.__defaults__, function.__kwdefaults__))
    return (qualified_name(function), code.co_code, code.co_names, constants, enclosed, defaults)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
