"""Activation checkpointing that leaves running statistics as one pass makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any]) -> Any:
    """Return `run(module, inputs)`; the module's activations are dropped and computed again in the backward pass.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The random state of the first run is used again,
    and what the second run writes to buffers (BatchNorm's statistics) is taken back.

    Args:
        module: the module whose buffers the second run must leave as they are.
        inputs: what it is run on.
        run: calls the module with the inputs.
    """
    # The re-entrant variant of torch finds no gradient where only parameters, and no input, require one.
    return checkpoint(run, module, inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _unchanged_buffers(module)


@contextmanager
def _unchanged_buffers(module: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, content in before:
            buffer.data.copy_(content)  # autograd may hold the buffer: its version must not change
