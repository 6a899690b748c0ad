"""A subgraph as Python code, compiled once for all equal stages."""

from __future__ import annotations

import functools
import hashlib
import linecache
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import fx

from branchnet.stages.codegen.device_rewrite import NAMES, device_now, on_device_of_inputs
from branchnet.stages.codegen.in_place_ops import written_in_place
from branchnet.stages.codegen.lookups import with_direct_lookups
from branchnet.stages.codegen.pickling import Row, graph_of, rows_of
from branchnet.stages.tracing.allowed_sizes import AllowedSizes
from branchnet.utils.installed_torch.torch_internals import TreeSpec


class Program:
    """A graph as a Python function of the module that holds its parameters. Immutable, hence shared by copies.

    Attributes:
        graph: the graph, in which tensors are made on `device`, that of the network when it was traced.
        output: the form of what is returned where it is not the graph's own.
        sizes: which sizes its inputs may have; None for any.
        source, names: the code and the names that it uses; it makes tensors where its inputs are.
    """

    def __init__(
        self, graph: fx.Graph, output: TreeSpec | None, device: torch.device, sizes: AllowedSizes | None = None
    ) -> None:
        self.graph = graph
        self.output = output
        self.sizes = sizes
        self.device = device
        self.arguments = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
        code = written_in_place(graph).python_code(root_module="self")
        self.source = with_direct_lookups(on_device_of_inputs(code.src, device), graph)
        placing = {NAMES["function"]: device_now, NAMES["traced"]: device}
        self.names: dict[str, Any] = dict(code.globals) | placing
        names = dict(self.names)
        exec(_compiled(self.source), names)
        self.function: Callable[..., Any] = names["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (rows_of(self.graph), self.output, self.device, self.sizes)


def _restored(
    rows: list[Row], output: TreeSpec | None, device: torch.device, sizes: AllowedSizes | None = None
) -> Program:
    return Program(graph_of(rows), output, device, sizes)


@functools.cache
def _compiled(source: str) -> CodeType:
    """Compile once for all equal stages of all networks: torch.compile keeps one graph for each code object."""
    filename = f"<branchnet stage {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    # Dynamo and tracebacks read source lines through linecache; None for the time of change keeps the entry for good.
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    return compile(source, filename, "exec")
