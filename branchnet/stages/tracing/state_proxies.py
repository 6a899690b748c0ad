"""Parameters and buffers while a network is traced: every read and every write becomes part of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

_IN_PLACE: dict[str, Callable[..., Any]] = {
    f"__{name}__": getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}


class StateProxy(fx.Proxy):
    """A parameter or buffer that is read: its shape is known, and `+=` writes to the tensor itself."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: Tensor) -> None:
        super().__init__(node, tracer)
        self._value = value

    @property
    def shape(self) -> torch.Size:
        """Its shape, a constant: code such as `weight.shape[0] // 2` runs as Python."""
        return self._value.shape

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return self._value.ndim

    def size(self, dim: int | None = None) -> Any:
        """Its shape or one length of it."""
        return self._value.shape if dim is None else self._value.shape[dim]

    def dim(self) -> int:
        """The number of its dimensions."""
        return self._value.ndim

    def numel(self) -> int:
        """How many values it has."""
        return self._value.numel()

    nelement = numel


def _writer(function: Callable[..., Any]) -> Callable[..., Any]:
    def write(self: StateProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name, _function in _IN_PLACE.items():
    setattr(StateProxy, _name, _writer(_function))


@contextmanager
def assignments_recorded() -> Iterator[None]:
    """While a network is traced: `self.buffer = value` copies the value into the buffer when the graph runs.

    torch.fx forgets every such assignment, torch.export those in modules below the network itself.
    """
    original = nn.Module.__setattr__

    def assign(module: nn.Module, name: str, value: Any) -> None:
        buffers = vars(module).get("_buffers")
        held = buffers.get(name) if isinstance(buffers, dict) else None  # torch.jit's modules have none of their own
        if not isinstance(held, Tensor) or not isinstance(value, fx.Proxy | Tensor) or value is held:
            original(module, name, value)
            return
        state = getattr(module, name)
        if isinstance(state, fx.Proxy):
            if not _written_already(state, value):
                state.copy_(value)
        elif isinstance(value, Tensor) and (value.shape, value.dtype) == (held.shape, held.dtype):
            held.copy_(value)
        else:
            original(module, name, value)  # type: ignore[arg-type]

    nn.Module.__setattr__ = assign  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]


def _written_already(state: fx.Proxy, value: Any) -> bool:
    """Whether the value is what `self.buffer += other` or `self.buffer = self.buffer.add_(other)` has returned."""
    if not isinstance(value, fx.Proxy):
        return False
    if value is state:
        return True
    node = value.node
    method = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.args[:1] == (state.node,) and (method or node.target in _IN_PLACE.values())
