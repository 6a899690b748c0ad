"""torch.compile as this package uses it: full graphs only, counted apart, on machines that can compile."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchnet.builder.network.call_inputs import Input
from branchnet.inference.change_detection import without_module_guards


def compiled_apart(
    function: Callable[..., Any],
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    backend: str = "inductor",
    module_guards: bool = True,
) -> Callable[..., Any]:
    """Compile `function` as one full graph, with recompilations counted apart from those of its other copies.

    Dynamo counts recompilations per code object, and gives up at the ninth. Without `module_guards` the caller sees to
    it that modules stay as they were when they were compiled, see `watching`.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{id(function)}")
    apart = types.FunctionType(code, function.__globals__, closure=function.__closure__)
    options: dict[str, Any] = dict(torch._inductor.list_mode_options(mode, dynamic)) if mode else {}
    if not module_guards:
        options["guard_filter_fn"] = without_module_guards
    return torch.compile(apart, fullgraph=True, dynamic=dynamic, backend=backend, options=options or None)


@functools.cache
def compiler_problem(device: str = "cpu") -> str:
    """Say why torch.compile fails on this machine, by compiling a small function; empty where it works."""

    def probe(x: Tensor) -> Tensor:
        return torch.sin(x) + x.mean()

    try:
        torch.compile(probe, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing toolchain raises, on any platform, is the answer
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def device_of(network: nn.Module) -> str:
    """The kind of device that a network's parameters are on."""
    return next((parameter.device.type for parameter in network.parameters()), "cpu")


def map_input(function: Callable[[Any], Any], x: Input) -> Input:
    """Apply a function to every tensor of an input."""
    if isinstance(x, Mapping):
        return {name: function(value) for name, value in x.items()}
    return pytree.tree_map(function, x)  # type: ignore[no-any-return]


def autocasting(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; with None whatever holds outside."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
