"""torch.compile as this package uses it: full graphs only, counted separately, on machines that can compile."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from branchnet.builder.network.call_inputs import Input
from branchnet.inference.change_detection import without_module_guards
from branchnet.utils.installed_torch import torch_internals
from branchnet.utils.installed_torch.torch_internals import TorchDynamoException, pytree

UNCOMPILED = (TorchDynamoException, ConstraintViolationError)
"""What torch.compile raises for code that is no full graph, and for code that fixes a batch size."""
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class CompileOptions:
    """How a network is compiled; `branchnet.compile` explains each.

    Attributes:
        mode: torch.compile's mode.
        dynamic: one graph for every batch size from 2 up; otherwise one for each shape.
        autocast: run under autocast to this type.
        cast: convert floating-point inputs to this type.
        channels_last: lay four-dimensional inputs out with the channels last.
        regions: compile equal nodes of a stage once, as regions of the graph.
    """

    mode: str | None = None
    dynamic: bool = True
    autocast: torch.dtype | None = None
    cast: torch.dtype | None = None
    channels_last: bool = False
    regions: bool = False


def records_cuda_graphs(mode: str | None) -> bool:
    """Whether torch.compile records CUDA graphs, in this mode or everywhere by inductor's own setting."""
    return mode in CUDA_GRAPH_MODES or bool(torch_internals.inductor_config.triton.cudagraphs)


def compiled_apart(
    function: Callable[..., Any],
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    backend: str = "inductor",
    module_guards: bool = True,
) -> Callable[..., Any]:
    """Compile `function` as one full graph, with recompilations counted separately from those of its other copies.

    Dynamo counts recompilations per code object, and gives up at the ninth (`torch._dynamo.config.recompile_limit` is
    8); a copy of the code object under another name is counted by itself.

    Args:
        function: what to compile, a plain Python function.
        mode: torch.compile's mode.
        dynamic: see torch.compile.
        backend: see torch.compile.
        module_guards: whether dynamo checks at each call that modules are as they were when they were compiled; without
            them the caller does, see `change_detection`.

    Returns:
        the compiled function; it is compiled when it is first called.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{id(function)}")
    apart = types.FunctionType(code, function.__globals__, closure=function.__closure__)
    # torch.compile takes a mode or options; the options that make up a mode can be joined with others.
    options: dict[str, Any] = dict(torch_internals.list_mode_options(mode, dynamic)) if mode else {}
    if not module_guards:
        options["guard_filter_fn"] = without_module_guards
    return torch.compile(apart, fullgraph=True, dynamic=dynamic, backend=backend, options=options or None)


@functools.cache
def compiler_problem(device: str = "cpu") -> str:
    """Say why torch.compile fails on this machine, by compiling a small function; empty where it works.

    Args:
        device: the kind of device to compile for.
    """

    def probe(x: Tensor) -> Tensor:
        return torch.sin(x) + x.mean()

    try:
        torch.compile(probe, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing toolchain raises, on any platform, is the answer
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def device_of(network: nn.Module) -> str:
    """Return the kind of device that a network's parameters are on; `"cpu"` where it has none."""
    return next((parameter.device.type for parameter in network.parameters()), "cpu")


def map_input(function: Callable[[Any], Any], x: Input) -> Input:
    """Apply a function to every tensor of an input, and return the input with what it returned."""
    if isinstance(x, Mapping):
        return {name: function(value) for name, value in x.items()}
    return pytree.tree_map(function, x)  # type: ignore[no-any-return]


def autocasting(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context that autocasts to `dtype`; with None whatever holds outside."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message that is not blank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
