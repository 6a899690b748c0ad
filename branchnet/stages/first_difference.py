"""Say where networks that should have a common backbone begin to differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from branchnet.errors import SplitError
from branchnet.stages.graph.common_subgraph import Alignment
from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.locations import Location


def check_common(alignment: Alignment, candidates: Sequence[Location], tasks: Sequence[str]) -> None:
    """Raise a SplitError that shows both sides of the first difference if there is nowhere to cut.

    Raises:
        SplitError: several networks have no location in common.
    """
    if candidates or len(tasks) == 1:
        return
    common = [set(alignment.order(k)) for k in range(len(tasks))]
    sides = [
        f"  {task}: {_describe(flow, next((node for node in flow.order if node not in nodes), None))}"
        for task, flow, nodes in zip(tasks, alignment.flows, common, strict=True)
    ]
    raise SplitError(
        "the networks have too little in common to share a stage; expected the same backbone up to the end of at least "
        "one module; first difference:\n" + "\n".join(sides)
    )


def _describe(flow: Dataflow, node: fx.Node | None) -> str:
    if node is None:
        return "ends here"
    place = (flow.calls(node) or ("the network itself",))[-1]
    shapes = ", ".join(str(tensor.shape) for tensor in flow.facts[node].tensors)
    if node.op == "call_module":
        return f"{place} = {flow.trace.root.get_submodule(str(node.target))} -> {shapes}"
    return f"{getattr(node.target, '__name__', node.target)} in {place} -> {shapes}"
