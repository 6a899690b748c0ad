"""Notice that a network is no longer the one that was compiled, with less work than torch.compile's own guards.

Dynamo guards every attribute of every module of a graph, and checks all at each call: 8,000 for a tree of five
networks. What can change in a network that is served is less: modes, modules, hooks, tensors, and where these lie.

The order of the checks is by cost: comparing identities and data pointers takes microseconds, and only where one of
them differs are shapes, types and devices read.
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
    """Choose the guards of a graph to keep: all but those on modules and what they hold.

    Args:
        entries: what torch.compile passes to its option `guard_filter_fn`, one entry for each guard.

    Returns:
        for each guard whether it is kept.
    """
    # Dynamo calls modules of users' classes "unspecialized": all that a branched network consists of.
    return [not entry.orig_guard.source.is_unspecialized_nn_module() for entry in entries]


class ChangeDetector:
    """What a network consists of, and whether that has changed since it was last asked.

    Values that are changed in place are no change, nor are tensors that others of their form replace: compiled code
    reads the tensors at each call. Attributes such as a layer's dropout probability are not checked.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._record()

    def modes(self) -> tuple[bool, ...]:
        """Return for each module whether it is in training mode."""
        return tuple(map(_mode_of, self._modules))

    def changed(self) -> bool:
        """Return whether modules or hooks were exchanged, or tensors by some of another shape, type, layout or device.

        The state found is the one that the next call compares with.
        """
        children, slots = _values(self._owners), _values(self._holders)
        same = _same(children, self._children) and _same(slots, self._slots) and not any(self._empty)
        if same and self._where() == self._pointers:
            return False
        # New pointers alone are no change: `load_state_dict(assign=True)` gives other tensors of the same form.
        before = (self._children, self._forms)
        self._record()
        return not _same(self._children, before[0]) or self._forms != before[1]

    def _record(self) -> None:
        self._modules = list(self._network.modules())
        traced = [m for m in self._modules if not isinstance(m, torch.jit.ScriptModule)]  # dynamo enters no others
        owners = [d for m in traced for d in (m._modules, m._forward_hooks, m._forward_pre_hooks)]
        tensors = [d for m in traced for d in (m._parameters, m._buffers)]
        # Most dictionaries of hooks and buffers are empty: `any` over them costs less than listing their values.
        self._empty: list[dict[Any, Any]] = [held for held in (*owners, *tensors) if not held]
        self._owners: list[dict[Any, Any]] = [held for held in owners if held]
        self._children = _values(self._owners)
        self._holders: list[dict[Any, Any]] = [held for held in tensors if held]
        self._slots = _values(self._holders)
        self._tensors = [(_pointer_of(slot), slot) for slot in self._slots if slot is not None]
        self._pointers = self._where()
        numbers: dict[int, int] = {}  # which slots hold the same tensor is part of the form: ties are compiled in
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
    """Return what reads where a tensor's values lie; classes other than torch's own, e.g. DTensor, may not say so."""
    return Tensor.data_ptr if type(tensor) in (Tensor, nn.Parameter) else operator.attrgetter("dtype")


def _form(tensor: Tensor) -> tuple[Any, ...]:
    layout = tensor.stride() if type(tensor) in (Tensor, nn.Parameter) else ()
    return (type(tensor), tuple(tensor.shape), layout, tensor.dtype, tensor.device, tensor.requires_grad)
