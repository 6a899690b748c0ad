"""torch.compile for branched networks: one full graph for each set of tasks that is asked for."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from branchnet.builder.network import BranchedNetwork, Input, wanted_tasks
from branchnet.builder.separate import SeparateNetworks
from branchnet.errors import BuildError

Outputs = dict[str, Any]


class CompiledNetwork:
    """A network of several tasks whose requested task sets each run as one compiled graph, without gradients.

    Calling it is calling the network that it was made from. A task set is compiled when it is first asked for. With a
    dynamic batch one graph serves every batch size from 2 up, and size 1 has a graph of its own.
    """

    def __init__(
        self, branched: BranchedNetwork | SeparateNetworks, *, mode: str | None = None, dynamic: bool = True
    ) -> None:
        self.branched = branched
        self.mode = mode
        self.dynamic = dynamic
        self._compiled: dict[tuple[str, ...], Callable[[Input], Outputs]] = {}

    def __call__(self, x: Input, tasks: Sequence[str] | None = None) -> Outputs:
        """Compute the outputs of `tasks`, all by default; see `BranchedNetwork.forward`."""
        subset = wanted_tasks(tasks, self.branched.tasks)
        if subset not in self._compiled:
            self._compiled[subset] = self._compile(subset)
        with torch.no_grad():
            return self._compiled[subset](_with_dynamic_batch(x) if self.dynamic else x)

    def _compile(self, subset: tuple[str, ...]) -> Callable[[Input], Outputs]:
        branched = self.branched

        def run(x: Input) -> Outputs:
            return branched(x, tasks=subset)  # type: ignore[no-any-return]

        # Dynamo counts recompilations per code object: a copy for each subset keeps their counts apart.
        code = run.__code__.replace(co_name=f"run_{len(self._compiled)}")
        separate = types.FunctionType(code, run.__globals__, closure=run.__closure__)
        return torch.compile(separate, fullgraph=True, mode=self.mode, dynamic=None if self.dynamic else False)


def compile(
    branched: BranchedNetwork, example: Input, *, mode: str | None = None, dynamic: bool = True
) -> CompiledNetwork:
    """Compile all tasks of `branched` as one graph and run it once on `example`.

    Args:
        branched: the network; its current mode (train or eval) is compiled.
        example: inputs of the size to expect.
        mode: torch.compile's mode, e.g. `"max-autotune"` or `"reduce-overhead"`.
        dynamic: compile for every batch size (dimension 0 of every input tensor); otherwise one graph for each shape.

    Raises:
        BuildError: this machine cannot compile; the reason is named.
    """
    if problem := compiler_problem(_device(branched)):
        raise BuildError(f"torch.compile does not work here: {problem}; use the branched network uncompiled")
    compiled = CompiledNetwork(branched, mode=mode, dynamic=dynamic)
    compiled(example)
    return compiled


@functools.cache
def compiler_problem(device: str = "cpu") -> str:
    """Say why torch.compile fails on this machine, by compiling a small function; empty where it works."""

    def probe(x: Tensor) -> Tensor:
        return torch.sin(x) + x.mean()

    try:
        torch.compile(probe, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing toolchain raises, on any platform, is the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return ""


def _with_dynamic_batch(x: Input) -> Input:
    """Alias the input tensors with their batch dimension marked dynamic, where there is more than one sample."""

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1:
            value = value.view_as(value)
            torch._dynamo.mark_dynamic(value, 0)
        return value

    if isinstance(x, Mapping):
        return {name: mark(value) for name, value in x.items()}
    return pytree.tree_map(mark, x)  # type: ignore[no-any-return]


def _device(branched: BranchedNetwork) -> str:
    return next((parameter.device.type for parameter in branched.parameters()), "cpu")
