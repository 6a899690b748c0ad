"""Say where networks that should have a common backbone begin to differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from branchnet.errors import SplitError
from branchnet.stages.costs import FirstDifference
from branchnet.stages.graph.common_subgraph import Alignment
from branchnet.stages.graph.dataflow import Dataflow, cost_of_whole
from branchnet.stages.graph.settings import differing_settings
from branchnet.stages.locations import Location
from branchnet.utils.installed_torch.torch_internals import BatchNormBase

_LONGEST = 200
_FROZEN = (
    "frozen BatchNorm (fixed statistics and weights, held as buffers) against BatchNorm (trained), which are different "
    "layers: give all networks one of them"
)


def check_common(alignment: Alignment, candidates: Sequence[Location], tasks: Sequence[str]) -> None:
    """Raise a SplitError that shows both sides of the first difference if there is nothing to share.

    Raises:
        SplitError: several networks have no location in common, or none that has weights or multiply-adds before it.
    """
    last = next((place for place in reversed(candidates) if place.position < min(alignment.lengths)), None)
    nothing = last is None or not (last.params or last.flops)
    difference = first_difference(alignment, candidates, tasks) if nothing and len(tasks) > 1 else None
    if difference is not None:
        raise SplitError(
            "the networks have too little in common to share a stage; expected the same backbone up to the end of at "
            f"least one module; {difference}"
        )


def check_passed(alignment: Alignment, chosen: Sequence[Location], tasks: Sequence[str]) -> None:
    """Refuse locations of which a network passes none.

    Raises:
        SplitError: names the network and the first location.
    """
    for task, length in zip(tasks, alignment.lengths, strict=True):
        if chosen[0].position >= length:
            raise SplitError(
                f"the network of {task!r} leaves the trunk before {chosen[0].name!r}, the first location; expected one "
                "that all networks pass, or depth='common'"
            )


def first_difference(
    alignment: Alignment, candidates: Sequence[Location], tasks: Sequence[str]
) -> FirstDifference | None:
    """Where the structures part.

    Args:
        alignment: what they have in common.
        candidates: the places at which they can be cut.
        tasks: the networks' names.

    Returns:
        The first step that not all of them have, or None where all steps of all networks are common.
    """
    nodes = _first_nodes(alignment)
    if not any(nodes):
        return None
    reached = [[place.params for place in candidates if place.position < length] for length in alignment.lengths]
    shared = sum(params[-1] for params in reached if params)
    total = sum(cost_of_whole(flow)[0] for flow in alignment.flows)
    sides = {task: _described(flow, node) for task, flow, node in zip(tasks, alignment.flows, nodes, strict=True)}
    return FirstDifference(sides, shared / total if total else 1.0, _reason(alignment.flows, nodes, sides))


def _first_nodes(alignment: Alignment) -> list[fx.Node | None]:
    """The first node of each network that is not common: of those that read the same values, where there are such."""
    readers: list[dict[tuple[int, ...], fx.Node]] = []
    for network, flow in enumerate(alignment.flows):
        index = {node: k for k, node in enumerate(alignment.order(network))}
        found: dict[tuple[int, ...], fx.Node] = {}
        for node in flow.order:
            read = [source for source in node.all_input_nodes if source not in flow.free]
            if node not in index and all(source in index for source in read):
                found.setdefault(tuple(sorted(index[source] for source in read)), node)
        readers.append(found)
    for values in readers[0]:
        if all(values in found for found in readers):
            return [found[values] for found in readers]
    return [next(iter(found.values()), None) for found in readers]


def _reason(flows: Sequence[Dataflow], nodes: Sequence[fx.Node | None], sides: dict[str, str]) -> str:
    modules = [_innermost(flow, node) for flow, node in zip(flows, nodes, strict=True) if node is not None]
    if any(map(_is_frozen, modules)) and any(isinstance(module, BatchNormBase) for module in modules):
        return _FROZEN
    if len({side.partition(" = ")[2] for side in sides.values()}) > 1 or len({*map(type, modules)}) > 1:
        return ""
    settings = differing_settings([module for module in modules if module is not None])
    return f"in the setting {', '.join(settings)}" if settings else "in what the same layer reads"


def _described(flow: Dataflow, node: fx.Node | None) -> str:
    if node is None:
        return "ends here"
    place = (flow.calls(node) or ("the network itself",))[-1]
    shapes = ", ".join(str(tensor.shape) for tensor in flow.facts[node].tensors)
    frozen = "frozen BatchNorm, " if _is_frozen(_innermost(flow, node)) else ""
    if node.op == "call_module":
        text = " ".join(repr(flow.trace.root.get_submodule(str(node.target))).split())
        return f"{place} = {frozen}{text[:_LONGEST]} -> {shapes}"
    return f"{frozen}{getattr(node.target, '__name__', node.target)} in {place} -> {shapes}"


def _innermost(flow: Dataflow, node: fx.Node) -> nn.Module | None:
    """The module in whose forward a node is, the node's own if it calls one."""
    calls = flow.calls(node)
    path = str(node.target) if node.op == "call_module" else calls[-1].partition("@")[0] if calls else ""
    return flow.trace.root.get_submodule(path)


def _is_frozen(module: nn.Module | None) -> bool:
    return "FrozenBatchNorm" in type(module).__name__
