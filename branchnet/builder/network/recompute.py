"""Activation checkpointing that leaves buffers as one pass makes them, and starts every pass from the same ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any]) -> Any:
    """Return `run(module, inputs)`; the module's activations are dropped and computed again in the backward pass.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". A graph that is retained may be passed again, as
    with `torch.utils.checkpoint`. Each pass uses the random state of the first run and starts from the buffers that it
    started from (spectral normalisation's vectors, say); what it writes to buffers is dropped.

    Args:
        module: the module whose buffers the passes must leave as they are.
        inputs: what it is run on.
        run: calls the module with the inputs.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        first = _FirstRun(module)
        return first, _RunAgain(first)

    # The re-entrant variant of torch finds no gradient where only parameters, and no input, require one.
    return checkpoint(run, module, inputs, use_reentrant=False, context_fn=contexts)


class _FirstRun(AbstractContextManager[None]):
    """Keeps what buffers held before the first run, where that run changes them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.changed: dict[tuple[int, str], Tensor] = {}
        """By the identity of the module that holds it, and its name there."""

    def __enter__(self) -> None:
        self._before = [(place, buffer, buffer._version, buffer.clone()) for place, buffer in _places(self.module)]

    def __exit__(self, *_: object) -> None:
        after = {(id(owner), name): buffer for (owner, name), buffer in _places(self.module)}
        for (owner, name), buffer, version, content in self._before:
            if after.get((id(owner), name)) is not buffer or buffer._version != version:
                self.changed[id(owner), name] = content
        del self._before


class _RunAgain(AbstractContextManager[None]):
    """Lets the module run on copies of its buffers; it is entered for each backward pass."""

    def __init__(self, first: _FirstRun) -> None:
        self._first = first

    def __enter__(self) -> None:
        copies: dict[int, Tensor] = {}  # a buffer that is in several places stays one tensor
        self._own = list(_places(self._first.module))
        for (owner, name), buffer in self._own:
            content = self._first.changed.get((id(owner), name), buffer)
            owner._buffers[name] = copies.setdefault(id(buffer), content.clone())

    def __exit__(self, *_: object) -> None:
        for (owner, name), buffer in self._own:
            owner._buffers[name] = buffer
        del self._own


def _places(module: nn.Module) -> list[tuple[tuple[nn.Module, str], Tensor]]:
    """Every buffer with the module that holds it and its name there."""
    return [
        ((owner, name), buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
