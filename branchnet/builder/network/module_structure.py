"""The structure of a module: what others must share to run the same code, and copies with other tensors."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from branchnet.stages import Stage
from branchnet.stitching.stitch import Stitch
from branchnet.utils.installed_torch.torch_internals import OpOverload, OpOverloadPacket
from branchnet.utils.tensor_digest import checksum

Kind = TypeVar("Kind", bound=nn.Module)
Numbered = dict[int, tuple[int, Any]]
"""By their ids, the objects met so far with their numbers; held, so that no other one gets the id meanwhile."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has: its mode, its tensors, its children and its hooks are compared separately."""


def structure(module: nn.Module) -> tuple[Any, ...]:
    """Layers with their settings, modes and hooks; names, shapes, layouts, types and ties of their tensors.

    Two modules of equal structure compute the same from the same weights. Attributes of every kind count, tensors that
    are neither parameters nor buffers by their values. What cannot be compared, such as a generator of random numbers,
    is equal to itself only.

    Args:
        module: any module.

    Returns:
        a hashable value; its content is not meant to be read.
    """
    state = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    # Tensors and modules get their numbers first: an attribute that refers to one of them is then compared by which of
    # them it is, and not by values, which may differ between modules of one structure.
    met: Numbered = {}
    for held in (*(tensor for _, tensor in state), *module.modules()):
        met.setdefault(id(held), (len(met), held))
    forms = tuple(
        (name, met[id(t)][0], isinstance(t, nn.Parameter), tuple(t.shape), _layout(t), t.dtype, t.device)
        for name, t in state
    )
    layers = tuple(
        (name, type(layer), layer.training, *((key, _form_of(value, met)) for key, value in _settings(layer).items()))
        for name, layer in module.named_modules()
    )
    return layers, forms


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer once, by its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name; a tensor of several names under each."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return dict(named)


def copied_with(module: Kind, tensors: Mapping[str, Tensor]) -> Kind:
    """Return a copy of a module that holds other tensors; ties stay ties.

    Args:
        module: the module.
        tensors: one for each parameter and buffer, by its first name (see `state_of`).
    """
    # deepcopy takes what its memo holds for a copy already made, so the old tensors are never copied.
    made: dict[int, Any] = {}
    for name, tensor in state_of(module).items():
        new = tensors[name]
        made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(module, made)


def on_meta(module: Kind) -> Kind:
    """Return a copy without values: what `functional_call` calls with the values of another one."""
    tensors = {name: torch.empty_like(t.detach(), device="meta") for name, t in state_of(module).items()}
    return copied_with(module, tensors)


def _settings(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Stage):
        code = module.running
        own = {"source": code.source, "output": repr(code.output)} | code.names
    elif isinstance(module, Stitch):
        own = {}  # whose features it maps, and how well, changes nothing that is computed: its maps are compared
    else:
        # Hooks such as those of weight_norm compute an attribute from the parameters.
        computed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        own = {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN | computed}
    return own | {name: list(getattr(module, name).values()) for name in _HOOKS}


def _form_of(value: Any, met: Numbered) -> Any:
    try:
        return _compared(value, met)
    except RecursionError:  # a long chain of objects
        return _as_itself(value)


def _compared(value: Any, met: Numbered) -> Any:
    """A value as something hashable to compare; objects are numbered as they are met, since some hold each other."""
    if isinstance(value, _VALUES):
        return (type(value), repr(value))
    if isinstance(value, _CODE):
        return ("code", id(value))
    if id(value) in met:
        return ("met", met[id(value)][0])
    met[id(value)] = (len(met), value)
    return _form(value, met)


_VALUES = (
    *(bool, int, float, complex, str, bytes, type(None), range, slice, PurePath),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""Compared by what they say."""
_CODE = (FunctionType, BuiltinFunctionType, type, ModuleType, OpOverload, OpOverloadPacket)
"""Compared by identity: the same function is the same computation."""


def _as_itself(value: Any) -> Any:
    return ("object", id(value))


@functools.singledispatch
def _form(value: Any, met: Numbered) -> Any:
    """An object by its attributes, where it has a dictionary of them; other objects are equal to themselves only."""
    return (type(value), _compared(vars(value), met)) if hasattr(value, "__dict__") else _as_itself(value)


@_form.register
def _(value: MethodType, met: Numbered) -> Any:
    return ("method", id(value.__func__), _compared(value.__self__, met))


@_form.register(weakref.ref)
def _(value: Any, met: Numbered) -> Any:
    return ("reference", _compared(value(), met))


@_form.register(functools.partial)
def _(value: Any, met: Numbered) -> Any:
    return ("partial", *(_compared(held, met) for held in (value.func, value.args, value.keywords)))


@_form.register(Mapping)
def _(value: Mapping[Any, Any], met: Numbered) -> Any:
    return (type(value), *((repr(key), _compared(held, met)) for key, held in value.items()))


@_form.register(list)
@_form.register(tuple)
def _(value: Any, met: Numbered) -> Any:
    return (type(value), *(_compared(held, met) for held in value))


@_form.register(set)
@_form.register(frozenset)
def _(value: Any, met: Numbered) -> Any:
    return (type(value), *sorted(map(repr, value)))


@_form.register
def _(value: Tensor, met: Numbered) -> Any:
    """Strided tensors by their values; others (sparse ones, DTensor and other subclasses) cannot be read as bytes."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        return _as_itself(value)
    content = "" if value.is_meta else checksum([("", value.detach().cpu())])
    return ("tensor", tuple(value.shape), _layout(value), value.dtype, value.device, content)


@_form.register(np.ndarray)
@_form.register(np.generic)
def _(value: Any, met: Numbered) -> Any:
    content = value.tolist() if value.dtype.hasobject else value.tobytes()
    attributes = getattr(value, "__dict__", None)  # of subclasses
    return (type(value), value.shape, value.dtype, _compared(content, met), _compared(attributes, met))


def _layout(tensor: Tensor) -> tuple[int, ...]:
    """The strides that matter: PyTorch sets that of a dimension of length 1 as it likes."""
    return tuple(step for step, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1)
