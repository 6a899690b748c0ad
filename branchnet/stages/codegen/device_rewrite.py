"""Let generated code make tensors where its inputs are, not on the device that the network was traced on."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor, nn

NAMES: dict[str, str] = {"function": "_device_now", "traced": "_device_traced"}
_VARIABLE = "_device"


def on_device_of_inputs(source: str, traced: torch.device) -> str:
    """The code with the device of the moment for the one that it was traced on, which tracing records as a constant.

    Other constant devices stay. The code calls two names that it has to be given: `device_now` and the traced device.
    """
    tree = ast.parse(source)
    placing = _Placing(traced)
    tree = placing.visit(tree)
    if not placing.found:
        return source
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    names = ", ".join([NAMES["traced"], *(argument.arg for argument in function.args.args)])
    function.body[:0] = ast.parse(f"{_VARIABLE} = {NAMES['function']}({names})").body
    return ast.unparse(ast.fix_missing_locations(tree))


class _Placing(ast.NodeTransformer):
    def __init__(self, traced: torch.device) -> None:
        self._traced = traced
        self.found = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "device" and not node.args:
            written = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            if written["type"] == self._traced.type and written.get("index", self._traced.index) == self._traced.index:
                self.found = True
                return ast.Name(_VARIABLE, ast.Load())
        return self.generic_visit(node)


def device_now(traced: torch.device, module: nn.Module, *values: Any) -> torch.device:
    """The traced device if any of the values is there, else that of the first tensor, or of the module's own."""
    # An input left on the traced device decides: a network that spans devices keeps what its own code said.
    devices = [value.device for value in values if isinstance(value, Tensor)]
    if not devices:
        devices = [tensor.device for tensor in (*module.parameters(), *module.buffers())]
    return traced if traced in devices or not devices else devices[0]
