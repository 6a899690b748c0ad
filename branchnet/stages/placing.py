"""Let generated code make tensors where its inputs are, not on the device that the network was traced on."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor, nn

NAME = "_device_of_inputs"
_VARIABLE = "_device"


def on_device_of_inputs(source: str) -> str:
    """The code with the inputs' device for every constant one: tracing writes down the device of the moment."""
    tree = ast.parse(source)
    placing = _Placing()
    tree = placing.visit(tree)
    if not placing.found:
        return source
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    names = ", ".join(argument.arg for argument in function.args.args)
    function.body[:0] = ast.parse(f"{_VARIABLE} = {NAME}({names})").body
    return ast.unparse(ast.fix_missing_locations(tree))


class _Placing(ast.NodeTransformer):
    found = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "device" and not node.args:
            self.found = True
            return ast.Name(_VARIABLE, ast.Load())
        return self.generic_visit(node)


def device_of_inputs(module: nn.Module, *values: Any) -> torch.device:
    """The device of the first tensor; of the module's own tensors where there is none."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.get_default_device())
