"""Notice that a network is no longer the one that was compiled, with less work than torch.compile's own guards.

Dynamo guards every attribute of every module of a graph, and checks all at each call: 8,000 for a tree of five
networks. What can change in a network that is served is less: modes, modules, hooks, tensors, and where these lie.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_mode_of = operator.attrgetter("training")


def without_module_guards(entries: Sequence[Any]) -> list[bool]:
    """Which guards of a graph to keep: all but those on modules and what they hold (`guard_filter_fn` of dynamo)."""
    return [not entry.orig_guard.source.is_unspecialized_nn_module() for entry in entries]


class Watch:
    """What a network consists of, and whether that has changed since it was last asked.

    Values that are changed in place are no change, nor are tensors that others of their form replace: compiled code
    reads the tensors at each call. Attributes such as a layer's dropout probability are not watched.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._look()

    def modes(self) -> tuple[bool, ...]:
        """For each module whether it is in training mode."""
        return tuple(map(_mode_of, self._modules))

    def changed(self) -> bool:
        """Whether modules or hooks were exchanged, or tensors by some of another shape, type, layout or device."""
        children, slots = _values(self._owners), _values(self._holders)
        same = _same(children, self._children) and _same(slots, self._slots) and not any(self._empty)
        if same and self._where() == self._pointers:
            return False
        before = (self._children, self._forms)
        self._look()
        return not _same(self._children, before[0]) or self._forms != before[1]

    def _look(self) -> None:
        self._modules = list(self._network.modules())
        traced = [m for m in self._modules if not isinstance(m, torch.jit.ScriptModule)]  # dynamo enters no others
        owners = [d for m in traced for d in (m._modules, m._forward_hooks, m._forward_pre_hooks)]
        tensors = [d for m in traced for d in (m._parameters, m._buffers)]
        self._empty: list[dict[Any, Any]] = [held for held in (*owners, *tensors) if not held]
        self._owners: list[dict[Any, Any]] = [held for held in owners if held]
        self._children = _values(self._owners)
        self._holders: list[dict[Any, Any]] = [held for held in tensors if held]
        self._slots = _values(self._holders)
        self._tensors = [(_pointer_of(slot), slot) for slot in self._slots if slot is not None]
        self._pointers = self._where()
        numbers: dict[int, int] = {}
        self._forms = [
            None if slot is None else (numbers.setdefault(id(slot), len(numbers)), *_form(slot)) for slot in self._slots
        ]

    def _where(self) -> list[Any]:
        return [pointer(tensor) for pointer, tensor in self._tensors]


def _values(dictionaries: Iterable[dict[Any, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, dictionaries)))


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _pointer_of(tensor: Tensor) -> Callable[[Tensor], Any]:
    """Says where a tensor's values lie; those of other classes than torch's own, such as DTensor, need not say so."""
    return Tensor.data_ptr if type(tensor) in (Tensor, nn.Parameter) else operator.attrgetter("dtype")


def _form(tensor: Tensor) -> tuple[Any, ...]:
    layout = tensor.stride() if type(tensor) in (Tensor, nn.Parameter) else ()
    return (type(tensor), tuple(tensor.shape), layout, tensor.dtype, tensor.device, tensor.requires_grad)
