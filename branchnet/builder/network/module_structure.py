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
from torch._ops import OpOverload, OpOverloadPacket

from branchnet.stages import Stage
from branchnet.utils.tensor_digest import checksum

Kind = TypeVar("Kind", bound=nn.Module)
Met = dict[int, tuple[int, Any]]
"""By their ids, objects with their numbers; held, so that no other one gets the id meanwhile."""
_CODE = (FunctionType, BuiltinFunctionType, type, ModuleType, OpOverload, OpOverloadPacket)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, PurePath)
_TORCHS_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has: its mode, its tensors, its children and its hooks are compared apart."""


def structure(module: nn.Module) -> tuple[Any, ...]:
    """Layers with their settings, modes and hooks; names, shapes, layouts, types and ties of their tensors.

    Two modules of equal structure compute the same from the same weights. Attributes of every kind count, tensors that
    are neither parameters nor buffers by their values. What cannot be compared, such as a generator of random numbers,
    is equal to itself only.
    """
    state = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    met: Met = {}
    for held in (*(tensor for _, tensor in state), *module.modules()):
        met.setdefault(id(held), (len(met), held))
    forms = tuple(
        (name, met[id(t)][0], isinstance(t, nn.Parameter), tuple(t.shape), _layout(t), t.dtype, t.device)
        for name, t in state
    )
    layers = tuple(
        (name, type(part), part.training, *((key, _form_of(value, met)) for key, value in _settings(part).items()))
        for name, part in module.named_modules()
    )
    return layers, forms


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def copied_with(module: Kind, tensors: Mapping[str, Tensor]) -> Kind:
    """A copy that holds these tensors: one for each parameter and buffer, by its first name; ties stay ties."""
    made: dict[int, Any] = {}
    for name, tensor in state_of(module).items():
        new = tensors[name]
        made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(module, made)


def on_meta(module: Kind) -> Kind:
    """A copy without values: what to call with the values of another one."""
    tensors = {name: torch.empty_like(t.detach(), device="meta") for name, t in state_of(module).items()}
    return copied_with(module, tensors)


def _settings(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Stage):
        code = module.running
        own = {"source": code.source, "output": repr(code.output)} | code.names
    else:
        # Hooks such as those of weight_norm compute an attribute from the parameters.
        computed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        own = {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN | computed}
    return own | {name: list(getattr(module, name).values()) for name in _HOOKS}


def _form_of(value: Any, met: Met) -> Any:
    try:
        return _form(value, met)
    except RecursionError:  # a long chain of objects
        return ("object", id(value))


def _form(value: Any, met: Met) -> Any:
    """A value as something to compare; objects are numbered as they are met, since some hold each other."""
    if isinstance(value, (*_PLAIN, *_TORCHS_PLAIN)):
        return (type(value), repr(value))
    if isinstance(value, _CODE):
        return ("code", id(value))
    if id(value) in met:
        return ("met", met[id(value)][0])
    met[id(value)] = (len(met), value)
    if isinstance(value, MethodType):
        return ("method", id(value.__func__), _form(value.__self__, met))
    if isinstance(value, weakref.ref):
        return ("reference", _form(value(), met))
    if isinstance(value, functools.partial):
        return ("partial", *(_form(part, met) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, Mapping):
        return (type(value), *((repr(key), _form(held, met)) for key, held in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), *(_form(held, met) for held in value))
    if isinstance(value, set | frozenset):
        return (type(value), *sorted(map(repr, value)))
    if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided:
        seen = "" if value.is_meta else checksum([("", value.detach().cpu())])
        return ("tensor", tuple(value.shape), _layout(value), value.dtype, value.device, seen)
    if isinstance(value, np.ndarray | np.generic):
        parts = value.tolist() if value.dtype.hasobject else value.tobytes()
        return (type(value), value.shape, value.dtype, _form(parts, met), _form(getattr(value, "__dict__", None), met))
    if hasattr(value, "__dict__") and not isinstance(value, Tensor):
        return (type(value), _form(vars(value), met))
    return ("object", id(value))


def _layout(tensor: Tensor) -> tuple[int, ...]:
    return tuple(step for step, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1)
