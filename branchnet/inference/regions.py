"""Equal nodes compiled once inside one full graph: the time to compile then grows with the stages, not their copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.inference.fusion import groups_of
from branchnet.stages import Stage
from branchnet.stitching.stitch import unstitched
from branchnet.utils.installed_torch.torch_internals import tree_leaves


def with_regions(branched: BranchedNetwork) -> BranchedNetwork:
    """Mark the equal nodes of each stage as regions that torch.compile compiles once.

    Args:
        branched: the network; it is not changed, and its weights are not copied.

    Returns:
        a network with the same outputs, to be compiled in place of `branched`.
    """
    marked = copy.copy(branched)
    marked._modules = dict(branched._modules)
    rows: list[list[nn.Module]] = [list(row) for row in branched.nodes]  # type: ignore[call-overload]
    for row in rows:
        for group in groups_of(row):
            if len(group) > 1 and not _returns_aliases(row[group[0]]):
                for k in group:
                    row[k] = _Region(row[k])
    marked.nodes = nn.ModuleList(nn.ModuleList(row) for row in rows)
    return marked


def _returns_aliases(node: nn.Module) -> bool:
    """Whether a node returns one of its inputs, or a tensor twice: `nested_compile_region` refuses such aliases."""
    stage = unstitched(node)
    if not isinstance(stage, Stage):
        return True
    (output,) = (n for n in stage.graph.nodes if n.op == "output")
    values = [n for n in tree_leaves(output.args) if isinstance(n, fx.Node)]
    return len(set(values)) < len(values) or any(n.op == "placeholder" for n in values)


class _Region(nn.Module):
    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node
        self.training = node.training

    def forward(self, *cut: Any, **inputs: Any) -> Any:
        """What the node returns."""
        return _as_region(self.node, cut, inputs)


@torch.compiler.nested_compile_region
def _as_region(node: nn.Module, cut: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
    return node(*cut, **inputs)
